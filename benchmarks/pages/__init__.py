"""What is shown: tables, plots, the HTML page, the README's table."""
