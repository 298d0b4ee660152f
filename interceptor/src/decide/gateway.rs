//! Where a gateway takes connections in (GW-1): the ports of its own that lead to servers of its
//! Gateways.

use std::collections::BTreeMap;

/// Its ports, and what is behind each.
pub type Listeners = BTreeMap<u16, Listener>;

/// What is behind a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    /// The server's port, as clients of its hosts know it: of several, the lowest.
    pub server_port: u16,
    /// Some server there takes HTTP.
    pub http: bool,
    /// Mutual TLS of the mesh ends here (`ISTIO_MUTUAL`): nothing else is taken then.
    pub mutual: bool,
    /// Some server there takes what is not in that TLS.
    pub plain: bool,
}
