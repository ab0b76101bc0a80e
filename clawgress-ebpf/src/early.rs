//! The early drop on agents' interfaces. An object of its own, since each is kept small, and this one has what
//! others call laid out in it.
//!
//! Must never let through what it does not understand, and never keep state that user space cannot
//! see: maps are the only memory.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        clippy::needless_borrows_for_generic_args,
        reason = "a key passed by value is copied on the stack"
    )
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(dead_code, reason = "each object takes what its programs need of the modules all are made of")
)]

#[cfg(target_arch = "bpf")]
mod event;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod frame;
#[cfg(target_arch = "bpf")]
mod image;
#[cfg(target_arch = "bpf")]
mod judge;
#[cfg(target_arch = "bpf")]
mod learned;
#[cfg(target_arch = "bpf")]
mod lease;
#[cfg(target_arch = "bpf")]
mod limit;
#[cfg(target_arch = "bpf")]
mod map;
#[cfg(target_arch = "bpf")]
mod neighbour;
#[cfg(target_arch = "bpf")]
mod parse;
#[cfg(target_arch = "bpf")]
mod recent;
#[cfg(target_arch = "bpf")]
mod reject;
#[cfg(target_arch = "bpf")]
mod xdp;

/// Whether limiters may have a packet sent later: agents' packets are forwarded, which clears when they leave.
#[cfg(target_arch = "bpf")]
const PACES: bool = false;

/// The helpers these programs call are for programs under a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Nothing here panics: the verifier would refuse a program that could reach this loop.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// On the host this crate is only checked, never run.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
