//! The allocator.

use mimalloc::MiMalloc;

/// Policies are many small allocations that live long beside many that go at once, where the C
/// library's allocator spends a third of the time of a load on putting free pieces together.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Gives free memory back to the system, after work that needed much more than is kept of it. Of the
/// calling thread and of threads that ended.
pub(crate) fn give_back() {
    const EVERYTHING: bool = true;
    #[expect(unsafe_code, reason = "the allocator's own door, which only its C interface has")]
    // SAFETY: touches free memory only, and may be called from any thread at any time.
    unsafe {
        libmimalloc_sys::mi_collect(EVERYTHING);
    }
}
