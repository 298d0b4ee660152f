//! What a policy is made of, for those who explain it.

use super::{Policy, Service};

impl Policy {
    /// Every host and port of the registry, in the order of REG-4.
    pub(crate) fn services(&self) -> &[Service] {
        self.inner.as_deref().map_or(&[], |inner| &inner.services)
    }
}
