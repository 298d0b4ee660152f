//! Credentials by name: what `credentialName` stands for.

use std::sync::Arc;

use crate::policy::{Credentials, Store};

/// Where credentials come from.
pub trait Secrets: Send + Sync {
    /// The credential called `name`, as it is now; `None`: there is none, or it may not be read.
    fn get(&self, name: &str) -> Option<Arc<Credentials>>;
}

impl Secrets for Store {
    /// As the policy in force has it, whichever one a connection was decided by: a credential that
    /// was taken back serves nobody any more.
    fn get(&self, name: &str) -> Option<Arc<Credentials>> {
        self.current().credentials.get(name)
    }
}
