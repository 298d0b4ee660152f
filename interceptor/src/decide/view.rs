//! What a policy is made of, for those who explain it.

use super::door::Scope;
use super::host::HostName;
use super::{Policy, Service};

impl Policy {
    /// Every host and port of the registry, in the order of REG-4.
    pub(crate) fn services(&self) -> &[Service] {
        self.inner.as_deref().map_or(&[], |inner| &inner.services)
    }

    /// Whether some name below `top` may leave through an egress proxy.
    pub(crate) fn may_proxy_below(&self, top: &HostName) -> bool {
        self.inner.as_deref().is_some_and(|inner| inner.doors.may_proxy(Scope::Below(top)))
    }
}
