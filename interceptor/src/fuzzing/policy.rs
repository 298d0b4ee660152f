//! Resources.

use crate::decide::host::HostName;
use crate::decide::{self, Flow};
use crate::origin::OriginalDst;
use crate::policy::{Caller, Enforcement, Notice, Outbound, Sources, load_over};
use crate::sniff::{ClientHello, Hello};
use crate::tiers;

const FILE: &str = "fuzzed.yaml";

/// A file of resources: it becomes policy that answers every question, and the same again, or each
/// complaint says where and what (T-61).
pub(super) fn load(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    for enforcement in [Enforcement::Strict, Enforcement::Istio] {
        check(text, enforcement);
    }
}

fn check(text: &str, enforcement: Enforcement) {
    let sources = Sources {
        texts: vec![(FILE.into(), text.to_owned())],
        outbound: Some(Outbound::RegistryOnly),
        enforcement: Some(enforcement),
        ..Sources::default()
    };
    let caller = Caller::new("default");
    let loaded = match crate::policy::load(&sources, &caller) {
        Ok(loaded) => loaded,
        Err(errors) => {
            assert!(!errors.0.is_empty(), "refused, and nobody says why");
            return errors.0.iter().for_each(|notice| is_clear(notice, text));
        }
    };
    loaded.rejected.iter().chain(&loaded.warnings).for_each(|notice| is_clear(notice, text));
    let again = load_over(&sources, &caller, &loaded.inventory).expect("what was loaded before");
    assert_eq!(again.summary, loaded.summary, "the same file, read over itself");
    assert_eq!(again.rejected.len(), loaded.rejected.len(), "{:?}", again.rejected);

    let snapshot = &loaded.snapshot;
    let survey = tiers::Survey::of(&snapshot.policy);
    let rows = tiers::compile::compile(snapshot, "default", &survey, &Default::default(), []);
    let dst = OriginalDst::new(([198, 51, 100, 200], 4433).into());
    let flow = Flow { dst, namespace: "default" };
    let sni = HostName::parse("nowhere.test").ok();
    let hello = Hello::Tls(ClientHello { sni, ..ClientHello::default() });
    let _ = decide::by_address(&snapshot.policy, &flow);
    let verdict = decide::by_hello(&snapshot.policy, &flow, &hello);
    let head = decide::RequestHead {
        method: "GET",
        authority: None,
        hosts: &["nowhere.test"],
        path: "/a?b=c",
        version: 11,
        headers: &(),
    };
    let _ = decide::by_request(&snapshot.policy, &flow, &head);
    // Nothing is said of this port, nor that what nothing is said of passes (SC-3).
    let is_silent = !snapshot.policy.ports().any(|port| port == 4433);
    if is_silent && !["ALLOW_ANY", "egressProxy", "\\"].iter().any(|word| text.contains(word)) {
        assert!(matches!(verdict.action, decide::Action::Block(_)), "{verdict:?}");
        let row = rows.rows.keys().find(|(port, _)| *port == 4433);
        assert!(row.is_none(), "{row:?}");
    }
}

/// It names the file, a place in it, and what is the matter, in one line.
fn is_clear(notice: &Notice, text: &str) {
    assert_eq!(notice.place.file.as_os_str(), FILE, "{notice}");
    // In YAML a carriage return ends a line too.
    assert!(notice.place.line <= text.matches(['\n', '\r']).count() + 1, "{notice}");
    assert!(!notice.message.is_empty(), "{notice:?}");
    let has_place = notice.place.line > 0 || notice.resource.is_some();
    assert!(has_place, "neither a line nor a resource: {notice}");
}
