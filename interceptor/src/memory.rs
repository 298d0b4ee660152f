//! The allocator.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Connections after whose end a thread gives back what it has free: what so few hold is kept for the
/// next ones.
const MANY: u64 = 1000;

/// Connections that ended.
static ENDED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// How many had when this thread last gave back.
    static GIVEN_BACK_AT: Cell<u64> = const { Cell::new(0) };
}

/// Counts a connection that ended (T-52: what a crowd held is given back).
pub(crate) fn connection_ended() {
    ENDED.fetch_add(1, Ordering::Relaxed);
}

/// For a thread that has nothing to do now: gives back once many connections ended. Each thread has free
/// memory of its own, which it alone can give back.
pub(crate) fn at_rest() {
    let ended = ENDED.load(Ordering::Relaxed);
    GIVEN_BACK_AT.with(|at| {
        if ended - at.get() >= MANY {
            at.set(ended);
            give_back();
        }
    });
}
