"""Protocols: each turns requests into calls of a Service, and answers and refusals into responses.

Each is a module with ``router(service, settings) -> APIRouter``.
"""
