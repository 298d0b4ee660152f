//! The memory in which a socket's hello is read.

use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::SkBuffContext;
use interceptor_common::{NameKey, ShownName};
use interceptor_ebpf::hello::{
    BLURRED, ECH_SLOT, MARKS, MAX_MESSAGE, MAX_NAME, PIECE, RECORD_HEADER, Workspace,
};

use crate::ctx::{self, opaque};

/// Lives in the socket (SK_STORAGE) while its hello is awaited.
#[repr(C)]
pub struct Scratch {
    marks: [u64; MARKS / 64],
    blurred: [u64; BLURRED],
    pad: u32,
    /// [`Key`] of the names' table: the number of bits, then the bytes.
    key_bits: u32,
    key: [u8; 256],
    /// A piece longer than it may get: see [`ctx::load_message`].
    pub message: [u8; MAX_MESSAGE + PIECE],
}

/// Below 20 KiB, what older kernels let a socket's options take (net.core.optmem_max).
const _: () = assert!(size_of::<Scratch>() < 19 * 1024);

impl Scratch {
    /// The key for a name of `len` bytes that [`Workspace::set_key`] wrote, in this set.
    #[inline(always)]
    pub fn key(&mut self, set: u16, len: usize) -> &Key<NameKey> {
        [self.key[0], self.key[1]] = set.to_ne_bytes();
        self.key_bits = 8 * (NameKey::FIXED + len + 1) as u32;
        // SAFETY: `Key` is packed: four bytes of length, then the data, as `key_bits` and `key` lie
        // here; both have any bit pattern.
        unsafe { &*(&raw const self.key_bits).cast::<Key<NameKey>>() }
    }

    /// Whether the hello that was read offered encrypted_client_hello.
    #[inline(always)]
    pub fn offers_ech(&self) -> bool {
        self.marks[ECH_SLOT / 64] & (1 << (ECH_SLOT % 64)) != 0
    }

    /// Copies the name that [`Workspace::set_key`] wrote, its 0 included; what lies behind is an
    /// earlier one's at most.
    #[inline(always)]
    pub fn copy_name(&self, into: &mut ShownName) {
        let mut at = 0;
        while at < MAX_NAME + 1 {
            into.bytes[at] = self.key[NameKey::FIXED + at];
            at += 1;
        }
    }
}

/// A packet's payload beside its socket's scratch.
pub struct Payload<'a> {
    pub ctx: &'a SkBuffContext,
    /// Where in the packet it begins.
    pub offset: usize,
    pub scratch: &'a mut Scratch,
}

impl Workspace for Payload<'_> {
    #[inline(always)]
    fn record_header(&mut self, at: usize) -> [u8; RECORD_HEADER] {
        ctx::load_or_zeros(self.ctx, self.offset + at)
    }

    #[inline(always)]
    fn first_byte(&mut self) -> u8 {
        let [byte] = ctx::load_or_zeros(self.ctx, self.offset);
        byte
    }

    #[inline(always)]
    fn gather(&mut self, from: usize, to: usize, len: usize) -> u64 {
        ctx::load_message(self.ctx, self.offset + from, self.scratch, to, len)
    }

    #[inline(always)]
    fn byte(&self, at: usize) -> u8 {
        let at = opaque(at) & (MAX_MESSAGE - 1);
        // SAFETY: masked to the message.
        unsafe { core::ptr::read_volatile(self.scratch.message.as_ptr().add(at)) }
    }

    #[inline(always)]
    fn clear_marks(&mut self) {
        self.scratch.marks = [0; MARKS / 64];
    }

    #[inline(always)]
    fn mark(&mut self, slot: usize) -> bool {
        let slot = opaque(slot) & (MARKS - 1);
        let bit = 1 << (slot & 63);
        // SAFETY: masked to the array.
        let word = unsafe { &mut *self.scratch.marks.as_mut_ptr().add(slot >> 6) };
        let fresh = *word & bit == 0;
        *word |= bit;
        fresh
    }

    #[inline(always)]
    fn set_key(&mut self, at: usize, byte: u8) {
        let at = opaque(at) & 255;
        // SAFETY: masked to the array.
        unsafe { core::ptr::write_volatile(self.scratch.key.as_mut_ptr().add(at), byte) };
    }

    #[inline(always)]
    fn blur(&mut self, slot: usize, value: usize) -> usize {
        let slot = &raw mut self.scratch.blurred[slot & (BLURRED - 1)];
        // SAFETY: a place of ours; volatile, so that the number really goes through memory, where the
        // verifier loses sight of it.
        unsafe {
            core::ptr::write_volatile(slot, value as u64);
            core::ptr::read_volatile(slot) as usize
        }
    }
    #[inline(always)]
    fn opaque(&self, value: usize) -> usize {
        opaque(value)
    }
}
