//! A packet generator inside the kernel: a test run of a small XDP program with live frames (Linux 5.18 and
//! later), each redirected out of an interface. It sends from this network namespace alone, and a bounded
//! number of frames. Faster than any socket, so that what is measured is the receiver.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use super::super::bpf;

/// Commands, program types and flags of `bpf(2)` (linux/bpf.h).
const BPF_PROG_LOAD: i32 = 5;
const BPF_LINK_CREATE: i32 = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Helpers by number.
const GET_PRANDOM_U32: i32 = 7;
const REDIRECT: i32 = 23;
/// Frames that go out together, as a driver would receive them.
const BATCH: u32 = 64;
/// Offsets in the frame, and bytes that the program must be able to reach.
const ID: i16 = 18;
const DESTINATION: i16 = 30;
const HEADERS_BYTES: i32 = 34;

/// Sends copies of one frame over IPv4, to destinations that vary.
#[derive(Debug)]
pub struct Generator {
    program: OwnedFd,
    frame: Vec<u8>,
}

#[repr(C)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

#[repr(C)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

// === impl Generator ===

impl Generator {
    /// Sends `frame` out of the interface `index`; to `base` with random bits where `mask` has them. IP id and
    /// destination sum up alike each time, so that one header checksum fits all.
    ///
    /// # Errors
    /// If the kernel refuses the program.
    pub fn new(index: u32, mut frame: Vec<u8>, base: Ipv4Addr, mask: u32) -> Result<Generator> {
        summed(&mut frame, base).context("the frame is no IPv4 packet")?;
        let program = load(&program(index.cast_signed(), u32::from(base), mask))?;
        Ok(Generator { program, frame })
    }

    /// Sends `count` frames; some are lost where the receiver is slower.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn send(&self, count: u32) -> io::Result<()> {
        bpf::test_run_live(&self.program, &self.frame, count, BATCH)
    }
}

/// A program of two instructions, of XDP or TC: what a run costs in which nothing is done.
///
/// # Errors
/// If the kernel refuses.
pub fn nothing(is_xdp: bool) -> Result<OwnedFd> {
    load_as(if is_xdp { BPF_PROG_TYPE_XDP } else { BPF_PROG_TYPE_SCHED_CLS }, &PASS)
}

/// `r0 = 2; exit`: to XDP that is to pass.
const PASS: [[u8; 8]; 2] = [[0xB4, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// Lets every frame pass on the interface `index` while the link lives: a virtual cable takes redirected
/// frames only where its other end has an XDP program.
///
/// # Errors
/// If the kernel refuses.
pub fn pass(index: u32) -> Result<OwnedFd> {
    let program = load(&PASS)?;
    let attr = LinkAttr {
        program: program.as_raw_fd().unsigned_abs(),
        target: index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    owned(bpf::call(BPF_LINK_CREATE, &attr).context("cannot attach the program that passes")?)
}

fn load(instructions: &[[u8; 8]]) -> Result<OwnedFd> {
    load_as(BPF_PROG_TYPE_XDP, instructions)
}

fn load_as(kind: u32, instructions: &[[u8; 8]]) -> Result<OwnedFd> {
    let attr = LoadAttr {
        kind,
        instruction_count: u32::try_from(instructions.len())?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    owned(bpf::call(BPF_PROG_LOAD, &attr).context("cannot load the generator")?)
}

fn owned(fd: i64) -> Result<OwnedFd> {
    let fd = i32::try_from(fd)?;
    // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes id and header checksum so that they fit `base`, and any destination with its complement as id.
fn summed(frame: &mut [u8], base: Ipv4Addr) -> Option<()> {
    let header = frame.get_mut(14..34)?;
    header.get_mut(4..6)?.fill(0);
    header.get_mut(10..12)?.fill(0);
    // The destination's halves and the id sum up to 0xFFFF, which is zero in one's complement.
    header.get_mut(16..20)?.fill(0);
    let words =
        header.chunks_exact(2).filter_map(|w| Some(u32::from(u16::from_be_bytes(w.try_into().ok()?))));
    let total: u32 = words.sum();
    let folded = (total & 0xFFFF) + (total >> 16);
    let checksum = !u16::try_from((folded & 0xFFFF) + (folded >> 16)).ok()?;
    header.get_mut(10..12)?.copy_from_slice(&checksum.to_be_bytes());
    header.get_mut(16..20)?.copy_from_slice(&base.octets());
    Some(())
}

/// One instruction (linux/bpf.h, `struct bpf_insn`).
fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let ([o, p], [i, j, k, l]) = (offset.to_ne_bytes(), immediate.to_ne_bytes());
    [code, from << 4 | to, o, p, i, j, k, l]
}

/// The program: redirects to `index` after writing a destination and its complement.
fn program(index: i32, base: u32, mask: u32) -> Vec<[u8; 8]> {
    /// Operations, by class, source and size (Documentation/bpf/standardization/instruction-set.rst).
    const LOAD_WORD: u8 = 0x61;
    const STORE_HALF: u8 = 0x6B;
    const STORE_WORD: u8 = 0x63;
    const MOVE: u8 = 0xBF;
    const ADD: u8 = 0x07;
    const JUMP_GREATER: u8 = 0x2D;
    const CALL: u8 = 0x85;
    const EXIT: u8 = 0x95;
    const MOVE_32: u8 = 0xBC;
    const SET_32: u8 = 0xB4;
    const AND_32: u8 = 0x54;
    const OR_32: u8 = 0x44;
    const XOR_32: u8 = 0xA4;
    const RIGHT_32: u8 = 0x74;
    const ADD_32: u8 = 0x0C;
    const TO_BE: u8 = 0xDC;
    /// Instructions that write, skipped where the frame is too short for them.
    const WRITES: i16 = 17;
    let i = instruction;
    let written: [[u8; 8]; WRITES as usize] = [
        i(CALL, 0, 0, 0, GET_PRANDOM_U32),
        i(AND_32, 0, 0, 0, mask.cast_signed()),
        i(OR_32, 0, 0, 0, base.cast_signed()),
        i(MOVE_32, 9, 0, 0, 0),
        // The one's complement sum of both halves, inverted.
        i(MOVE_32, 2, 0, 0, 0),
        i(RIGHT_32, 2, 0, 0, 16),
        i(AND_32, 0, 0, 0, 0xFFFF),
        i(ADD_32, 2, 0, 0, 0),
        i(MOVE_32, 3, 2, 0, 0),
        i(RIGHT_32, 3, 0, 0, 16),
        i(AND_32, 2, 0, 0, 0xFFFF),
        i(ADD_32, 2, 3, 0, 0),
        i(XOR_32, 2, 0, 0, 0xFFFF),
        i(TO_BE, 2, 0, 0, 16),
        i(STORE_HALF, 6, 2, ID, 0),
        i(TO_BE, 9, 0, 0, 32),
        i(STORE_WORD, 6, 9, DESTINATION, 0),
    ];
    let mut all = vec![
        i(LOAD_WORD, 6, 1, 0, 0),
        i(LOAD_WORD, 7, 1, 4, 0),
        i(MOVE, 8, 6, 0, 0),
        i(ADD, 8, 0, 0, HEADERS_BYTES),
        i(JUMP_GREATER, 8, 7, WRITES, 0),
    ];
    all.extend(written);
    all.extend([
        i(SET_32, 1, 0, 0, index),
        i(SET_32, 2, 0, 0, 0),
        i(CALL, 0, 0, 0, REDIRECT),
        i(EXIT, 0, 0, 0, 0),
    ]);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_destination_with_its_complement_keeps_the_checksum() {
        let mut frame = vec![0u8; 64];
        frame[14..24].copy_from_slice(&[0x45, 0, 0, 50, 9, 9, 0x40, 0, 64, 17]);
        frame[26..30].copy_from_slice(&[10, 9, 0, 2]);
        summed(&mut frame, Ipv4Addr::new(16, 0, 0, 7)).expect("a header");
        for destination in [0x1000_0007_u32, 0x1234_5678, u32::MAX, 0] {
            let halves = (destination >> 16) + (destination & 0xFFFF);
            let folded = u16::try_from((halves & 0xFFFF) + (halves >> 16)).expect("16 bits");
            frame[30..34].copy_from_slice(&destination.to_be_bytes());
            frame[18..20].copy_from_slice(&(!folded).to_be_bytes());
            let words = frame[14..34].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
            let total: u32 = words.sum();
            assert_eq!((total & 0xFFFF) + (total >> 16), 0xFFFF, "{destination:08x}");
        }
    }
}
