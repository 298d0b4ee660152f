//! The allocator.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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

/// How often something big was freed by now: connections that ended, or rest.
static SPENT: AtomicUsize = AtomicUsize::new(0);
/// A thread gives back at once after so many of those, and after this time for fewer.
const MANY: usize = 1000;
const FEW_AFTER: Duration = Duration::from_millis(500);

thread_local! {
    /// What of [`SPENT`] this thread has given back, and when.
    static GIVEN: Cell<(usize, Option<Instant>)> = const { Cell::new((0, None)) };
}

/// Something big was freed that may not be needed again soon (T-52: what a crowd held is given back).
pub(crate) fn spent() {
    SPENT.fetch_add(1, Ordering::Relaxed);
}

/// A worker that has nothing to do gives back what was freed since it last did: only the thread that
/// allocated a page can.
pub(crate) fn before_rest() {
    let spent = SPENT.load(Ordering::Relaxed);
    let (given, when) = GIVEN.get();
    let new = spent.wrapping_sub(given);
    let is_time = || when.is_none_or(|when| when.elapsed() >= FEW_AFTER);
    if new >= MANY || (new > 0 && is_time()) {
        GIVEN.set((spent, Some(Instant::now())));
        give_back();
    }
}
