//! For a refusal: the resource that came nearest to allowing it, and how it would have to change.

use serde::Serialize;

use super::Dialled;
use super::candidates::{covers, declared, offers, takes};
use super::question::Question;
use crate::decide::host::HostName;
use crate::decide::pattern::EntryHost;
use crate::decide::{Policy, Service};

/// The resource that came nearest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// The resource.
    pub resource: String,
    /// Its host and port.
    pub offers: String,
    /// What would have to change, or what was probably meant.
    pub hint: String,
}

/// How far off a resource is; less is nearer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    /// Names host and port.
    Fits,
    /// Names the host with another port.
    OtherPort,
    /// The wildcard of its parent domain would cover the name, or covers all but the domain itself.
    Relative,
    /// A name a few letters away: how many, and whether the port differs.
    Letters(usize, bool),
}

/// The nearest resource to what was asked, if any comes near.
pub(super) fn nearest(policy: &Policy, question: &Question, dialled: &Dialled) -> Option<Nearest> {
    let (distance, service) = policy
        .services()
        .iter()
        .filter_map(|service| Some((distance(service, question, dialled)?, service)))
        .min_by_key(|(distance, _)| *distance)?;
    Some(Nearest {
        resource: service.rule.to_string(),
        offers: offers(service),
        hint: hint(distance, service, question, dialled),
    })
}

fn distance(service: &Service, question: &Question, dialled: &Dialled) -> Option<Distance> {
    let same_port = service.port == question.port;
    let Some(name) = question.name() else {
        return match (service.lists(dialled.addr.ip()), same_port) {
            (true, true) => Some(Distance::Fits),
            (true, false) => Some(Distance::OtherPort),
            (false, _) => None,
        };
    };
    if covers(&service.cluster.host, question) {
        return Some(if same_port { Distance::Fits } else { Distance::OtherPort });
    }
    let (EntryHost::Exact(own) | EntryHost::Wildcard(own) | EntryHost::Partial(own)) =
        &service.cluster.host;
    // Siblings below one domain, but not below one public suffix of a single label.
    let siblings = own
        .parents()
        .next()
        .is_some_and(|parent| parent.contains('.') && name.parents().next() == Some(parent));
    let limit = 2.max(name.as_str().len() / 8);
    let letters = edit_distance(own.as_str(), name.as_str(), limit);
    match (&service.cluster.host, letters) {
        (EntryHost::Wildcard(suffix), _) if suffix == name => Some(Distance::Relative),
        (_, Some(letters)) => Some(Distance::Letters(letters, !same_port)),
        (EntryHost::Exact(_), None) if siblings && same_port => Some(Distance::Relative),
        _ => None,
    }
}

fn hint(distance: Distance, service: &Service, question: &Question, dialled: &Dialled) -> String {
    let asked = match question.name() {
        Some(name) => name.to_string(),
        None => dialled.addr.ip().to_string(),
    };
    let port = question.port;
    match (distance, &service.cluster.host) {
        (Distance::Fits, _) if !takes(service.group, question.first) => format!(
            "it declares port {port} as {}, which is not what the client sends; correct the protocol",
            declared(service.group)
        ),
        (Distance::Fits, _) if !service.holds(dialled.addr.ip()) => {
            "it names host and port, but its addresses do not hold the dialled one".to_owned()
        }
        (Distance::Fits, _) => "it names host and port".to_owned(),
        (Distance::OtherPort, _) => {
            format!("it names {asked} for port {}; add port {port}", service.port)
        }
        (Distance::Relative, EntryHost::Wildcard(suffix)) if suffix.as_str() == asked => {
            format!(
                "{} covers the names below {asked}, not {asked} itself; add it",
                service.cluster.host
            )
        }
        (Distance::Relative, host) => {
            let parent = question.name().and_then(|name| name.parents().next()).unwrap_or_default();
            format!("{host} is a sibling; *.{parent} would cover both")
        }
        (Distance::Letters(..), host) => format!("did you mean {host}?"),
    }
}

/// The number of letters to change, add, drop or swap, if it is at most `limit` (optimal string
/// alignment).
fn edit_distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    for (i, &x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, &y) in b.iter().enumerate() {
            let mut best = (above[j] + usize::from(x != y)).min(above[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && x == b[j - 1] && a[i - 1] == y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        if row.iter().all(|&cost| cost > limit) {
            return None;
        }
        before = std::mem::replace(&mut above, row);
    }
    above.last().copied().filter(|&cost| cost <= limit)
}

/// The name under which an address goes in a ServiceEntry that has no other.
pub(super) fn stand_in(ip: std::net::IpAddr) -> Option<HostName> {
    let digits: String =
        ip.to_string().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    HostName::parse(&format!("ip-{}.internal", digits.trim_matches('-'))).ok()
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn letters() {
        for (a, b, limit, expected) in [
            ("google.com", "google.com", 2, Some(0)),
            ("gogle.com", "google.com", 2, Some(1)),
            ("googel.com", "google.com", 2, Some(1)),
            ("goggle.con", "google.com", 2, Some(2)),
            ("example.com", "google.com", 2, None),
            ("a", "abcdef", 2, None),
        ] {
            assert_eq!(edit_distance(a, b, limit), expected, "{a} {b}");
        }
    }
}
