//! Resources of Kubernetes itself: Services as entries of the registry, Pods as endpoints that entries
//! select, and the Secrets and
//! ConfigMaps that `credentialName` names. What their own API server checks is not checked again:
//! unknown fields are passed over.

mod base64;
mod pod;
mod secret;
mod service;
#[cfg(test)]
mod tests;

pub(super) use self::pod::read_pod;
pub(crate) use self::secret::{Credentials, SecretStore};
pub(super) use self::service::{EndpointSlice, KubernetesService};
