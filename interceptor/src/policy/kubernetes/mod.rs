//! Resources of Kubernetes itself: Services as entries of the registry, Pods as endpoints that entries
//! select, and the Secrets and ConfigMaps that `credentialName` names. What their own API server checks
//! is not checked again: unknown fields are passed over.

mod pod;
mod secret;
mod service;
#[cfg(test)]
mod tests;

pub(super) use self::pod::read_pod;
pub(super) use self::secret::SecretStore;
pub use self::secret::{Credentials, Keyring};
pub(super) use self::service::{EndpointSlice, KubernetesService};
