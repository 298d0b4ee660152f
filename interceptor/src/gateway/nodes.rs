//! Which node may speak for which workloads.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::hbone::{Claim, is_name};
use crate::policy::Caller;
use crate::workloads::Workload;

/// No table is longer, in bytes.
const FILE_MAX: u64 = 64 * 1024 * 1024;

/// The table, by the nodes' identities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    by_identity: BTreeMap<String, Vec<Arc<Entry>>>,
}

/// Workloads of a node that have their rules in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Entry {
    /// Their namespace.
    pub namespace: String,
    /// One of that name only.
    pub name: Option<String>,
    /// Those with this service account only.
    pub service_account: Option<String>,
    /// Their labels, by which rules select them: the table's word, not the node's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// It cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no table.
    #[error("{path}: {why}", path = .path.display())]
    Form {
        /// Which.
        path: PathBuf,
        /// Where and what.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Node {
    identity: String,
    workloads: Vec<Entry>,
}

impl Nodes {
    /// Reads the table in `path`.
    ///
    /// # Errors
    /// [`NodesError`], with the place in the file.
    pub fn read(path: &Path) -> Result<Self, NodesError> {
        let failed = |source| NodesError::File { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_MAX {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        Self::parse(&text).map_err(|why| NodesError::Form { path: path.to_owned(), why })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let written: Written = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if written.nodes.is_empty() {
            return Err("nodes: list at least one node".into());
        }
        let mut by_identity = BTreeMap::new();
        for (at, Node { identity, workloads }) in written.nodes.into_iter().enumerate() {
            if identity.is_empty() || identity.contains(char::is_whitespace) {
                let form = "a URI or DNS name as the certificate has it, like \
                            spiffe://corp.example/node/node-1";
                return Err(format!("nodes[{at}].identity: not an identity; write {form}"));
            }
            for (one, entry) in workloads.iter().enumerate() {
                let named = [
                    ("namespace", Some(&entry.namespace)),
                    ("name", entry.name.as_ref()),
                    ("serviceAccount", entry.service_account.as_ref()),
                ];
                for (field, text) in named {
                    if text.is_some_and(|text| !is_name(text)) {
                        return Err(format!(
                            "nodes[{at}].workloads[{one}].{field}: no name that Kubernetes would give; \
                             it has lower-case letters, digits, '-' and '.'"
                        ));
                    }
                }
            }
            let workloads: Vec<_> = workloads.into_iter().map(Arc::new).collect();
            if by_identity.insert(identity.clone(), workloads).is_some() {
                return Err(format!("nodes[{at}].identity: {identity} is there twice; keep one"));
            }
        }
        Ok(Self { by_identity })
    }

    /// How many nodes it has.
    pub fn len(&self) -> usize {
        self.by_identity.len()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.by_identity.is_empty()
    }

    /// All entries.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_identity.values().flatten()
    }

    /// The entry by which a node with these `identities` may speak for the workload of `claim`, and
    /// the identity; `None`: it may not.
    pub(super) fn vouched<'i>(
        &self,
        identities: &'i [String],
        claim: &Claim,
    ) -> Option<(&'i str, &Arc<Entry>)> {
        identities.iter().find_map(|identity| {
            let entries = self.by_identity.get(identity)?;
            let entry = entries.iter().find(|entry| entry.covers(claim))?;
            Some((identity.as_str(), entry))
        })
    }
}

impl Entry {
    fn covers(&self, claim: &Claim) -> bool {
        let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|own| own == is);
        self.namespace == claim.namespace
            && is(&self.name, &claim.name)
            && is(&self.service_account, &claim.service_account)
    }

    /// For whom its policy is compiled.
    pub(super) fn caller(&self) -> Caller {
        let labels = self.labels.iter().map(|(key, value)| (key.clone(), value.clone()));
        Caller { namespace: self.namespace.clone(), labels: labels.collect() }
    }

    /// The workload of `claim`, which it covers.
    pub(super) fn workload(&self, claim: &Claim) -> Workload {
        Workload {
            namespace: claim.namespace.as_str().into(),
            name: claim.name.as_str().into(),
            service_account: claim.service_account.as_str().into(),
            labels: self.labels.clone(),
            pod: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "
nodes:
- identity: spiffe://corp.example/node/one
  workloads:
  - {namespace: shop, name: checkout, labels: {app: checkout}}
  - {namespace: shop, serviceAccount: web}
- identity: two.corp.example
  workloads: [{namespace: bank}]
";

    fn claim(namespace: &str, name: &str, service_account: &str) -> Claim {
        Claim {
            namespace: namespace.into(),
            name: name.into(),
            service_account: service_account.into(),
        }
    }

    /// A node speaks for its own workloads, and whoever has its key for no others.
    #[test]
    fn a_node_speaks_for_its_own() {
        let nodes = Nodes::parse(TABLE).expect("a table");
        let one = ["one.corp.example".to_owned(), "spiffe://corp.example/node/one".to_owned()];
        let two = ["two.corp.example".to_owned()];
        let may = |identities: &[String], claim: Claim| {
            nodes.vouched(identities, &claim).map(|(identity, _)| identity.to_owned())
        };
        assert_eq!(may(&one, claim("shop", "checkout", "")), Some(one[1].clone()));
        assert_eq!(may(&one, claim("shop", "any", "web")), Some(one[1].clone()));
        assert_eq!(may(&two, claim("bank", "any", "any")), Some(two[0].clone()));
        for (identities, other) in [
            (&one[..], claim("shop", "other", "")),
            (&one[..], claim("bank", "checkout", "web")),
            (&two[..], claim("shop", "checkout", "web")),
            (&[][..], claim("bank", "any", "")),
            (&["nobody".to_owned()][..], claim("bank", "any", "")),
        ] {
            assert_eq!(may(identities, other.clone()), None, "{other:?}");
        }
        let (_, entry) = nodes.vouched(&one, &claim("shop", "checkout", "")).expect("vouched");
        assert_eq!(entry.workload(&claim("shop", "checkout", "")).labels["app"], "checkout");
    }

    #[test]
    fn what_is_no_table_is_said() {
        for (text, expected) in [
            ("nodes: []", "list at least one node"),
            (
                "nodes: [{identity: a, workloads: [{namespace: A}]}]",
                "workloads[0].namespace: no name",
            ),
            ("nodes: [{identity: '', workloads: []}]", "nodes[0].identity: not an identity"),
            ("nodes: [{identity: a, workloads: []}, {identity: a, workloads: []}]", "there twice"),
            ("nodes: [{identity: a, workloads: [{namespace: a, pod: b}]}]", "pod"),
            ("nodes: [{identity: a}]", "workloads"),
        ] {
            let said = Nodes::parse(text).expect_err(text);
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
