//! `interceptor gateway`: the other end of the streams that nodes bring (`hbone/`). Each is a connection
//! of a workload, with its original destination, and goes the way that it would go on a node: sniff,
//! decide, act, account (`conn.rs`), by the policy of that workload.
//!
//! The other form is Istio's own ([`Front`]): the gateway listens where its Gateways' servers are, and judges
//! what dials it by their hosts and by the VirtualServices that are bound to them.
//!
//! Who it is, the node says; whether that node may say so, the gateway's own table ([`Nodes`]). A node
//! whose key was stolen can therefore speak for the workloads that it had, and for no others.

mod brought;
mod front;
mod keys;
mod loopback;
mod nodes;
mod peer;
mod policies;
mod serve;

pub use front::{Front, Unopened};
pub use keys::{KeyFiles, Keys, KeysError};
pub use loopback::Loopback;
pub use nodes::{Nodes, NodesError};
pub use policies::{Policies, Shared};
pub use serve::Gateway;
