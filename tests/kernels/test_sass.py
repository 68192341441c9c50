"""Reading disassembled kernels, and how many blocks of one fit on a multiprocessor."""

from __future__ import annotations

from pathlib import Path

import pytest

from xlnet_fast.errors import ArgumentError, BackendUnavailable
from xlnet_fast.kernels.chips import CHIPS, KIB, blocks_per_multiprocessor
from xlnet_fast.kernels.report import sass

ASSEMBLY = """
        /*0000*/                   STL [R1], R2 ;
.L_x_0:
        /*0010*/                   LDL R3, [R1] ;
.L_x_1:
        /*0020*/                   FFMA R4, R4, R5, R6 ;
        /*0030*/              @!P0 BRA `(.L_x_1) ;
        /*0040*/               @P1 BRA `(.L_x_0) ;
        /*0050*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0060*/                   EXIT ;
"""
# As nvdisasm 13.1 prints it: two kernels, the second without launch bounds.
TWO = """
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
//--------------------- .nv.info                  --------------------------
	.section	.nv.info,"",@"SHT_CUDA_INFO"
        /*0004*/ 	.word	0x00000007
//--------------------- .nv.info._Z5firstv --------------------------
	.section	.nv.info._Z5firstv,"",@"SHT_CUDA_INFO"
	//----- nvinfo : EIATTR_MAXREG_COUNT
        /*0032*/ 	.short	0x00ff
	//----- nvinfo : EIATTR_MAX_THREADS
	.align		4
        /*0030*/ 	.byte	0x04, 0x05
        /*0032*/ 	.short	(.L_19 - .L_18)
.L_18:
        /*0034*/ 	.word	0x00000040
        /*0038*/ 	.word	0x00000002
        /*003c*/ 	.word	0x00000001
	.section	.nv.info._Z6secondv,"",@"SHT_CUDA_INFO"
        /*0034*/ 	.word	0x00000009
//--------------------- .text._Z5firstv --------------------------
	.section	.text._Z5firstv,"ax",@progbits
.text._Z5firstv:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDSM.16.M88.4 R8, [R2] ;
        /*0020*/                   STL [R1], R2 ;
.L_x_1:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R3], [R4.64] ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
        /*0050*/              @!P1 BRA `(.L_x_0) ;
        /*0060*/               @P2 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0070*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0080*/               @P3 BRA.U `(.L_x_0) ;
        /*0090*/                   MUFU.EX2 R5, R5 ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
        /*00c0*/                   NOP;
.L_x_3:
	.section	.text._Z6secondv,"ax",@progbits
.text._Z6secondv:
        /*0000*/                   EXIT ;
"""


def test_spills_count_in_innermost_loops_only():
    def spills(assembly: str) -> int:
        return sass.loop_spills(sass.functions(assembly)[""])

    assert spills(ASSEMBLY) == 0
    assert spills(ASSEMBLY.replace("FFMA R4, R4, R5, R6", "LDL.64 R4, [R1+0x8]")) == 1
    assert spills(ASSEMBLY.replace("@P1 BRA `(.L_x_0)", "NOP")) == 0


def test_functions_are_told_apart():
    found = sass.functions(TWO)
    assert list(found) == ["_Z5firstv", "_Z6secondv"]
    assert len(found["_Z5firstv"].instructions) == 13
    assert found["_Z6secondv"].instructions == ["EXIT"]
    assert (found["_Z5firstv"].max_threads, found["_Z6secondv"].max_threads) == (128, None)


def test_a_loop_reaches_to_the_farthest_branch_back():
    """`continue` is a branch back too, and what follows it is still of the loop."""
    code = sass.functions(TWO)["_Z5firstv"]
    assert sorted(sass.loops(code)) == [(1, 8), (3, 4)]
    assert [sass.opcode(text) for text in sass.in_innermost_loops(code)] == ["LDGSTS", "BRA"]


def test_code_moved_behind_the_last_exit_closes_no_loop():
    code = sass.functions(TWO.replace("`(.L_x_2)", "`(.L_x_0)"))["_Z5firstv"]
    assert sorted(sass.loops(code)) == [(1, 8), (3, 4)]
    code.instructions[code.instructions.index("EXIT")] = "NOP"
    assert sorted(sass.loops(code)) == [(1, 11), (3, 4)]


def test_loops_around_an_operation_hold_what_is_inside():
    code = sass.functions(TWO)["_Z5firstv"]
    around = sass.in_innermost_loops(code, around="HMMA")
    assert around == code.instructions[1:9]
    assert sass.local_accesses(around) == 1
    assert sass.in_innermost_loops(code, around="FFMA") == []


def test_instructions_are_counted_by_operation():
    counts = sass.count(sass.functions(TWO)["_Z5firstv"].instructions, ("HMMA", "BAR", "LDS"))
    assert counts == {"HMMA": 1, "BAR": 1, "LDS": 0, "all": 12}


def test_a_missing_disassembler_is_told(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="nvdisasm is neither on the path nor inside"):
        sass.nvdisasm()


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    tool = tmp_path / "nvdisasm"
    tool.write_text("#!/bin/sh\necho $1 is no cubin >&2\nexit 1\n")
    tool.chmod(0o755)
    with pytest.raises(ArgumentError, match=f"{tool} cannot read what nvcc made: a.o is no cubin"):
        sass.disassemble(str(tool), Path("a.o"), "nvcc")


# NVIDIA's occupancy calculator, by hand: what limits is named.
@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared_bytes", "blocks"),
    [
        (80, 128, 128, 0, 4),  # registers: 4096 a warp, 16 warps
        (80, 129, 128, 0, 3),  # 4352 a warp: 15 warps, of which each scheduler gets 3
        (80, 32, 128, 0, 16),  # 64 warps
        (86, 32, 128, 0, 12),  # 48 warps
        (80, 16, 32, 0, 16),  # a block of one warp takes a place of each scheduler
        (80, 32, 128, 81 * KIB, 2),  # 82 KiB with the driver's one
        (80, 32, 128, 82 * KIB, 1),
        (90, 32, 128, 227 * KIB, 1),
        (86, 32, 128, 99 * KIB + 1, 0),
        (80, 255, 1024, 0, 0),
    ],
)
def test_how_many_blocks_fit(arch, registers, threads, shared_bytes, blocks):
    assert blocks_per_multiprocessor(arch, registers, threads, shared_bytes) == blocks


@pytest.mark.parametrize("arch", CHIPS)
def test_the_largest_block_fits_and_no_larger_one(arch):
    largest = CHIPS[arch].shared_of_block
    assert blocks_per_multiprocessor(arch, 32, 128, largest) == 1
    assert blocks_per_multiprocessor(arch, 32, 128, largest + 1) == 0
