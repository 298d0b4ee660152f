//! Whether a workload is only watched.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether what policy refuses a workload passes and is only told. Off unless somebody said so of this very
/// workload; every clone sees a change.
#[derive(Debug, Clone, Default)]
pub struct Audit(Arc<AtomicBool>);

impl Audit {
    /// So from the start.
    pub fn new(on: bool) -> Self {
        Self(Arc::new(AtomicBool::new(on)))
    }

    /// Whether it is so now.
    pub fn is_on(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Has it so from the next connection or request on.
    pub fn set(&self, on: bool) {
        self.0.store(on, Ordering::Release);
    }
}
