//! Bytes of a frame, read either in place (constant offsets) or through a helper (offsets that
//! depend on the packet). Must never read past what the driver gave.

use core::ffi::c_void;
use core::mem::size_of;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes};
use aya_ebpf::programs::{TcContext, XdpContext};

use crate::image::hidden;

/// A received frame, starting with its Ethernet header.
pub trait Frame {
    /// Start and end of the bytes that can be read in place.
    fn bounds(&self) -> (usize, usize);
    /// Copies `length` bytes at `offset`; 0 if they are there.
    fn load(&self, offset: u32, to: *mut c_void, length: u32) -> i64;
    /// Bytes of the whole frame, where those that can be read in place need not be all of them; else 0.
    fn whole(&self) -> u32;
}

/// A frame at either hook, so that both share the instructions that parse it.
#[derive(Clone, Copy)]
pub struct Raw {
    ctx: *mut c_void,
    start: usize,
    end: usize,
    is_xdp: bool,
}

impl Raw {
    /// The frame of an XDP program.
    #[inline(always)]
    pub fn xdp(ctx: &XdpContext) -> Self {
        Raw { ctx: ctx.ctx.cast(), start: ctx.data(), end: ctx.data_end(), is_xdp: true }
    }

    /// The same, of which the verifier knows nothing yet.
    // VERIFIER: what was found in place on one path and not on another would keep the paths apart.
    #[inline(always)]
    pub fn anew(&self) -> Self {
        let ctx = hidden(self.ctx as u64) as *mut xdp_md;
        // SAFETY: the context is that of the XDP program.
        let (start, end) = unsafe { ((*ctx).data as usize, (*ctx).data_end as usize) };
        Raw { ctx: ctx.cast(), start, end, is_xdp: true }
    }

    /// Index of the interface that an XDP program's frame came in by.
    #[inline(always)]
    pub fn ifindex(&self) -> u32 {
        // SAFETY: the context is that of the XDP program.
        unsafe { (*self.ctx.cast::<xdp_md>()).ingress_ifindex }
    }

    /// The frame of a TC program.
    #[inline(always)]
    pub fn tc(ctx: &TcContext) -> Self {
        Raw { ctx: ctx.as_ptr(), start: ctx.data(), end: ctx.data_end(), is_xdp: false }
    }

    /// The parts, to be passed on as arguments: context, start, end, whether it is XDP's.
    #[inline(always)]
    pub fn parts(self) -> (*mut c_void, usize, usize, bool) {
        (self.ctx, self.start, self.end, self.is_xdp)
    }

    /// What [`Raw::parts`] took apart.
    #[inline(always)]
    pub fn from_parts(ctx: *mut c_void, start: usize, end: usize, is_xdp: bool) -> Self {
        Raw { ctx, start, end, is_xdp }
    }
}

impl Frame for Raw {
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        (self.start, self.end)
    }

    #[inline(always)]
    fn load(&self, offset: u32, to: *mut c_void, length: u32) -> i64 {
        load(self.ctx, offset, to, length, self.is_xdp)
    }

    #[inline(always)]
    fn whole(&self) -> u32 {
        // SAFETY: the context is that of the XDP program.
        if self.is_xdp { unsafe { bpf_xdp_get_buff_len(self.ctx.cast()) as u32 } } else { 0 }
    }
}

// VERIFIER: a function of its own, since it is called wherever an offset depends on the packet, which
// ordinary packets have none of. It knows which hook it is at, and never walks the other's call.
#[inline(never)]
fn load(ctx: *mut c_void, offset: u32, to: *mut c_void, length: u32, is_xdp: bool) -> i64 {
    if is_xdp {
        // SAFETY: `copy` passes a destination of `length` bytes.
        unsafe { bpf_xdp_load_bytes(ctx.cast(), offset, to, length) }
    } else {
        // SAFETY: as above.
        unsafe { bpf_skb_load_bytes(ctx.cast_const(), offset, to, length) }
    }
}

/// Bytes of the frame that can be read in place: all of it, unless it is in several buffers.
#[inline(always)]
pub fn xdp_length(ctx: &XdpContext) -> u32 {
    (ctx.data_end() - ctx.data()) as u32
}

/// The `T` at a constant `offset`, if the frame has it in place.
// VERIFIER: the comparison and the read use the same sum, with nothing variable in it; an offset that
// depends on the packet must go through `copy`.
#[inline(always)]
pub fn at<T: Copy>(frame: &impl Frame, offset: usize) -> Option<T> {
    let (start, end) = frame.bounds();
    if start + offset + size_of::<T>() > end {
        return None;
    }
    // SAFETY: the bytes are within the frame (checked above). BPF loads need no alignment on the
    // machines we run on; the verifier refuses the program where they do.
    Some(unsafe { *((start + offset) as *const T) })
}

/// The `T` at any `offset`. `T` must be plain bytes.
#[inline(always)]
pub fn copy<T: Copy + Default>(frame: &impl Frame, offset: u32) -> Option<T> {
    let mut value = T::default();
    let to = core::ptr::from_mut(&mut value).cast();
    if frame.load(offset, to, size_of::<T>() as u32) == 0 { Some(value) } else { None }
}

/// The `T` that is at the constant `offset` where nothing variable comes before it, and `shift` bytes
/// later otherwise.
#[inline(always)]
pub fn read<T: Copy + Default>(frame: &impl Frame, offset: usize, shift: u32) -> Option<T> {
    if shift == 0 { at(frame, offset) } else { copy(frame, offset as u32 + shift) }
}
