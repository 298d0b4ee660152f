//! The smallest ServiceEntry that turns a refusal into an allow. What is suggested has been tried:
//! it was loaded with everything else, and the connection decided again.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::nearest::stand_in;
use super::question::{FirstBytes, Question};
use super::{Asker, Dialled};
use crate::decide::{Policy, Service};

/// One way to allow it.
struct Draft {
    host: String,
    protocol: &'static str,
    addresses: bool,
    resolution: &'static str,
    export_to: Option<&'static str>,
}

/// The first of the drafts, shortest first, that would allow the connection. `None` if no further
/// entry can: then something that is there has to change.
pub(super) fn suggest(
    asker: &Asker<'_>,
    policy: &Policy,
    question: &Question,
    dialled: &Dialled,
) -> Option<String> {
    drafts(question, dialled)
        .iter()
        .map(|draft| yaml(draft, &asker.caller.namespace, question, dialled))
        .find(|text| allows(asker, policy, text))
}

fn drafts(question: &Question, dialled: &Dialled) -> Vec<Draft> {
    let own = match question.first {
        FirstBytes::Http1 => "HTTP",
        FirstBytes::H2c => "HTTP2",
        FirstBytes::Tls => "TLS",
        FirstBytes::Raw | FirstBytes::None => "TCP",
    };
    let mut drafts = Vec::new();
    let mut add = |host: &str, protocol, addresses, resolutions: &[&'static str]| {
        for export_to in [None, Some("."), Some("*")] {
            drafts.extend(resolutions.iter().map(|resolution| Draft {
                host: host.to_owned(),
                protocol,
                addresses,
                resolution,
                export_to,
            }));
        }
    };
    if let Some(name) = question.name() {
        // The others are for hosts that an entry with this resolution has already (REG-3).
        add(name.as_str(), own, false, &["DNS", "NONE", "DNS_ROUND_ROBIN"]);
        if !dialled.assumed {
            add(name.as_str(), own, true, &["NONE", "DNS"]);
            add(name.as_str(), "TCP", true, &["NONE"]);
        }
    } else if let Some(host) = stand_in(dialled.addr.ip()) {
        add(host.as_str(), own, true, &["NONE"]);
        add(host.as_str(), "TCP", true, &["NONE"]);
    }
    drafts
}

fn yaml(draft: &Draft, namespace: &str, question: &Question, dialled: &Dialled) -> String {
    let Draft { host, protocol, addresses, resolution, export_to } = draft;
    let port = question.port;
    let name: String = host.chars().filter(|c| *c != '_').take(200).collect();
    let name = name.trim_matches(['-', '.']);
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  \
         name: allow-{name}-{port}\n  namespace: {namespace}\nspec:\n  hosts:\n  - {host}\n"
    );
    let mut put = |line: std::fmt::Arguments<'_>| {
        // Writing to a String cannot fail.
        let _ = text.write_fmt(line);
    };
    if *addresses {
        let ip = dialled.addr.ip();
        let quote = if ip.is_ipv6() { "\"" } else { "" };
        put(format_args!("  addresses:\n  - {quote}{ip}{quote}\n"));
    }
    put(format_args!(
        "  ports:\n  - number: {port}\n    name: {}-{port}\n    protocol: {protocol}\n  \
         resolution: {resolution}\n",
        protocol.to_ascii_lowercase()
    ));
    if let Some(export_to) = export_to {
        put(format_args!("  exportTo:\n  - \"{export_to}\"\n"));
    }
    text
}

/// Whether the connection would be allowed with `text` beside everything that is there, and without
/// taking a host and port from any resource: an entry that comes first by its name could.
fn allows(asker: &Asker<'_>, before: &Policy, text: &str) -> bool {
    let mut sources = asker.sources.clone();
    sources.texts.push((PathBuf::from("suggested.yaml"), text.to_owned()));
    let Ok((loaded, answer)) = asker.ask(&sources) else { return false };
    let key = |service: &Service| (service.rule.clone(), service.cluster.name.clone());
    let after: HashSet<_> = loaded.snapshot.policy.services().iter().map(key).collect();
    answer.outcome.allowed && before.services().iter().all(|service| after.contains(&key(service)))
}
