//! Resources of Kubernetes itself: Services as entries of the registry, and the Secrets and
//! ConfigMaps that `credentialName` names. What their own API server checks is not checked again:
//! unknown fields are passed over.

mod secret;
mod service;
#[cfg(test)]
mod tests;

pub(super) use self::secret::SecretStore;
pub use self::secret::{Credentials, Keyring};
pub(super) use self::service::{EndpointSlice, KubernetesService};
