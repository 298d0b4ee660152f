//! Validation, lookup, precedence and origination, each as tables.

mod lookup;
mod origination;
mod recipes;
mod validation;

use std::sync::LazyLock;

use super::super::fields::Findings;
use super::super::resource::Resources;
use super::super::{Caller, Enforcement};
use super::rules::Lookup;
use super::*;

/// Reads `text` as resources.
fn read(text: &str) -> (Vec<DestinationRule>, Findings) {
    let mut out = Findings::default();
    let mut resources = Resources::default();
    resources.read(&Arc::from(std::path::Path::new("p.yaml")), text, &mut out);
    (resources.destination_rules, out)
}

/// One rule as YAML; `name` is `namespace/name`.
fn rule(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

fn rules(texts: &[String], profile: Enforcement) -> Rules {
    rules_with(texts, profile, &["*"])
}

fn rules_with(texts: &[String], profile: Enforcement, export_to: &[&str]) -> Rules {
    let (rules, mut out) = read(&texts.concat());
    assert!(out.errors.is_empty() && out.rejected.is_empty(), "{out:?}");
    let defaults = Defaults {
        root_namespace: "istio-system".into(),
        export_to: export_to.iter().map(|&name| name.to_owned()).collect(),
        profile,
    };
    Rules::new(rules, defaults, &mut out)
}

/// A workload of the namespace `default`.
static CALLER: LazyLock<Caller> = LazyLock::new(|| Caller::new("default"));

fn port(host: &str, port: u16) -> ServicePort<'_> {
    ServicePort { host, namespace: "shared", port, kind: PortKind::Http1, subject_alt_names: &[] }
}
