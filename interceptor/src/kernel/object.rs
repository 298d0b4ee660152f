//! The kernel side as bytes: the BPF object that was compiled with this binary.

/// What a binary without its kernel side says, and how to get one that has it.
pub(super) const MISSING: &str = "built without its BPF object: build with `cargo xtask build`";

/// Aligned, because the ELF parser reads headers in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/interceptor.bpf.o"));

/// The embedded BPF object, an ELF file; `None` in a build that had none (a plain `cargo check`
/// before any `cargo xtask build`), for which [`MISSING`] is the message.
pub(super) fn embedded() -> Option<&'static [u8]> {
    (!OBJECT.is_empty()).then_some(OBJECT)
}
