//! The preflight against an API server in the process.

use serde_json::json;

use super::super::tests::fake::Fake;
use super::*;
use crate::agent::Name;
use crate::agent::kinds::Kind;

async fn look(fake: &Fake) -> Findings {
    let mesh = Name { namespace: "istio-system".to_owned(), name: "istio".to_owned() };
    let wanted = Wanted { node: "n", mesh: &mesh };
    Findings(look_at_cluster(&fake.client(), &wanted).await)
}

/// One that has all that the agent asks for.
fn whole() -> Fake {
    let fake = Fake::with_istio();
    fake.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": ""},
    }));
    fake.put(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"nodeName": "n"},
    }));
    fake
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_has_all_is_good() {
    let found = look(&whole()).await;
    assert!(found.suffice(), "{found}");
    let expected = "\
✓ API server     v1.36.0
✓ rights         26 of 26 that it needs
✓ telling        statuses of resources, Events on pods
✓ Istio's kinds  ServiceEntry v1, WorkloadEntry v1, VirtualService v1, DestinationRule v1, Sidecar v1, Telemetry v1
✓ mesh config    ConfigMap istio-system/istio
✓ pods           there are some on n
The agent can run here; 0 to think about (!).
";
    assert_eq!(found.to_string(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_is_named_with_its_remedy() {
    let fake = whole();
    fake.deny("watch", "sidecars");
    fake.deny("list", "configmaps");
    let found = look(&fake).await;
    assert!(!found.suffice(), "{found}");
    let text = found.to_string();
    for line in [
        "✓ rights         24 of 26 that it needs",
        "✗ rights         may not watch sidecars.networking.istio.io",
        "                 fix: add it to the ClusterRole interceptor-agent (docs/agent.md)",
        "✗ rights         may not list configmaps istio-system/istio",
        "                 fix: a Role in istio-system for this name (docs/agent.md)",
        "The agent cannot run here: 2 missing (✗).",
    ] {
        assert!(text.lines().any(|have| have == line), "no {line:?} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_it_can_do_without_is_said_and_no_failure() {
    let fake = Fake::with_istio();
    fake.undefine(Kind::Telemetry);
    fake.deny("create", "events");
    fake.deny("patch", "virtualservices");
    let found = look(&fake).await;
    assert!(found.suffice(), "{found}");
    let text = found.to_string();
    for part in [
        "! Istio's kinds  not there: Telemetry",
        "! mesh config    there is no ConfigMap istio-system/istio",
        "! pods           none has n as its node",
        "! telling        may not create events.events.k8s.io: that is said on the node only",
        "! telling        may not patch virtualservices/status.networking.istio.io: that",
        "5 to think about (!)",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_nothing_more_is_asked() {
    let fake = whole();
    fake.set_down(true);
    let found = look(&fake).await;
    assert!(!found.suffice());
    assert!(found.to_string().starts_with("✗ API server  the server is down (503)"), "{found}");
    assert_eq!(fake.requests("").len(), 1, "{:?}", fake.requests(""));
}
