//! What objects are told in their status, and what that costs the API server.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::kinds::Kind;
use super::super::refusals::{self, Refusals};
use super::fake::Fault;
use super::*;
use crate::account::Refusal;
use crate::decide::Reason;
use crate::workloads::PodIdentity;

fn config(namespace: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "egress.interceptor.io/v1alpha1", "kind": "InterceptorConfig",
        "metadata": {"name": name, "namespace": namespace}, "spec": spec,
    })
}

/// Type, status, reason and message of an object's conditions.
fn conditions(fake: &Fake, plural: &str, name: &str) -> Vec<[String; 4]> {
    let object = fake.objects(plural).into_iter().find(|one| one["metadata"]["name"] == name);
    let object = object.expect("the object");
    let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    for one in all.iter().filter(|one| one["type"] != "Reconciled") {
        assert_eq!(one["observedGeneration"], object["metadata"]["generation"], "{one}");
    }
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let fields = ["type", "status", "reason", "message"];
    all.iter().map(|one| fields.map(|field| text(one, field))).collect()
}

fn of(all: &[[&str; 4]]) -> Vec<[String; 4]> {
    all.iter().map(|one| one.map(str::to_owned)).collect()
}

const VALID: [&str; 4] = ["Accepted", "True", "Valid", ""];
const IN_FORCE: [&str; 4] = ["Programmed", "True", "InForce", ""];

/// A configuration holds for whom it is for, live, and is told so; an invalid one keeps its last good
/// version.
#[tokio::test(start_paused = true)]
async fn an_interceptor_config_is_in_force_and_told_so() {
    let fake = shop();
    fake.put(namespace("bank", json!({})));
    fake.put(pod("bank", "web", json!({})));
    fake.put(config("shop", "c", json!({"bypassCIDRs": ["10.0.0.0/8"]})));
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let bypass = |node: &Node, name: &str| {
        let state = node.agent.state();
        let (_, one) = state.pods().find(|(pod, _)| pod.to_string() == name).expect("a pod");
        let snapshot = state.policy(&one.pod).expect("a policy").store.current();
        snapshot.bypass.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        (bypass(&node, "shop/web"), bypass(&node, "bank/web")),
        (vec!["10.0.0.0/8".into()], vec![])
    );
    assert_eq!(conditions(&fake, "interceptorconfigs", "c"), of(&[VALID, IN_FORCE]));
    let generation = node.generation();
    node.pass(5 * MINUTE).await;
    assert_eq!(fake.written().len(), 1, "once, and then it stands");
    assert_eq!(node.generation(), generation, "a status is no policy");

    // The definition would not let this one pass; another definition may.
    fake.put(config("shop", "c", json!({"bypassCIDRs": ["10.0.0.1/8"]})));
    node.settle().await;
    assert_eq!(bypass(&node, "shop/web"), ["10.0.0.0/8"]);
    let invalid = "spec.bypassCIDRs[0]: 10.0.0.1/8 has bits beyond its prefix; write 10.0.0.0/8; its \
                   last good version stays";
    assert_eq!(
        conditions(&fake, "interceptorconfigs", "c"),
        of(&[
            ["Accepted", "False", "Invalid", invalid],
            ["Programmed", "True", "LastGoodInForce", "its last good version stays"],
        ])
    );
    fake.put(config("shop", "c", json!({"bypassCIDRs": ["192.0.2.0/24"]})));
    node.settle().await;
    assert_eq!(bypass(&node, "shop/web"), ["192.0.2.0/24"]);
    assert_eq!(conditions(&fake, "interceptorconfigs", "c"), of(&[VALID, IN_FORCE]));
    // A younger one has no say.
    let mut late = config("shop", "late", json!({"fastPath": false}));
    late["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    fake.put(late);
    node.settle().await;
    let told = conditions(&fake, "interceptorconfigs", "late");
    assert_eq!(told[0][..3], ["Accepted", "False", "Overruled"].map(str::to_owned), "{told:?}");
}

/// Istio's objects are told what is wrong with them, and when it no longer is; nobody else's condition is
/// lost, and what is good is never written to.
#[tokio::test(start_paused = true)]
async fn what_is_refused_is_told_on_the_object() {
    let fake = shop();
    let mut bad = entry("shop", "b", "b_.*.com");
    let theirs = json!({"type": "Reconciled", "status": "True", "observedGeneration": 1});
    bad["status"] = json!({"conditions": [theirs]});
    fake.put(bad.clone());
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let told = conditions(&fake, "serviceentries", "b");
    assert_eq!(told[0][..2], ["Reconciled", "True"].map(str::to_owned));
    let ours = "egress.interceptor.io/Accepted";
    assert_eq!(told[1][..3], [ours, "False", "Invalid"].map(str::to_owned), "{told:?}");
    assert!(told[1][3].starts_with("spec.hosts[0]: "), "{told:?}");
    assert_eq!(fake.requests("PATCH ").len(), 1, "{:?}", fake.requests("PATCH "));
    let since =
        |fake: &Fake| fake.written().last().expect("written")["status"]["conditions"][1].clone();
    assert!(since(&fake)["lastTransitionTime"].as_str().is_some_and(|time| time.ends_with('Z')));

    let written =
        fake.objects("serviceentries").into_iter().find(|one| one["metadata"]["name"] == "b");
    let mut mended = written.expect("there");
    mended["spec"] = entry("shop", "b", "b.example.com")["spec"].clone();
    fake.put(mended);
    let said = node.settle().await;
    assert!(said.iter().any(|line| line.contains("policy generation 2")), "{said:?}");
    let told = conditions(&fake, "serviceentries", "b");
    assert_eq!(told[1], of(&[[ours, "True", "Valid", ""]])[0]);
    assert_eq!(fake.requests("PATCH ").len(), 2);
    assert_eq!(conditions(&fake, "serviceentries", "a"), of(&[]), "what was never refused");
}

/// Somebody writes in between: the newer version is seen, and written over in its turn.
#[tokio::test(start_paused = true)]
async fn a_conflict_is_retried() {
    let fake = shop();
    for _ in 0..3 {
        fake.fail(Kind::InterceptorConfig, Fault::Write(409));
    }
    fake.fail(Kind::InterceptorConfig, Fault::Write(500));
    fake.put(config("shop", "c", json!({})));
    let mut node = Node::start(&fake, registry_only());
    node.pass(4 * MINUTE).await;
    assert_eq!(conditions(&fake, "interceptorconfigs", "c"), of(&[VALID, IN_FORCE]));
    assert_eq!(fake.written().len(), 5);
    assert_eq!(node.services("shop/web"), Some(vec!["a.example.com:443".to_owned()]));
}

/// The right to write may be missing: said once, and no storm; what is enforced does not hang on it.
#[tokio::test(start_paused = true)]
async fn a_forbidden_status_is_said_once() {
    let fake = shop();
    for _ in 0..200 {
        fake.fail(Kind::InterceptorConfig, Fault::Write(403));
    }
    for number in 0..50 {
        fake.put(config(
            "shop",
            &format!("c{number}"),
            json!({"selector": {"matchLabels": {"a": "b"}}}),
        ));
    }
    let mut node = Node::start(&fake, registry_only());
    node.pass(60 * MINUTE).await;
    let said = node.said.join("\n");
    assert_eq!(said.matches("interceptorconfigs/status cannot be written").count(), 1, "{said}");
    // One each ten minutes.
    assert!((3..10).contains(&fake.written().len()), "{}", fake.written().len());
    fake.put(entry("shop", "b", "b.example.com"));
    node.settle().await;
    assert_eq!(node.services("shop/web").map(|all| all.len()), Some(2));
    fake.fault_no_more();
    node.pass(20 * MINUTE).await;
    assert_eq!(conditions(&fake, "interceptorconfigs", "c7"), of(&[VALID, IN_FORCE]));
}

/// All agents of a cluster come to the same result; few of them ask, and one writes.
#[tokio::test(start_paused = true)]
async fn of_many_agents_one_writes() {
    let fake = shop();
    let mut nodes: Vec<_> =
        (0..60).map(|number| Node::named(&fake, &format!("n{number}"))).collect();
    let mut both = Vec::new();
    for node in &mut nodes {
        both.push(node.pass(Duration::from_millis(300)).await);
    }
    fake.put(config("shop", "c", json!({})));
    let mut all = tokio::task::JoinSet::new();
    for mut node in nodes {
        all.spawn(async move { node.pass(3 * MINUTE).await });
    }
    while let Some(said) = all.join_next().await {
        said.expect("no panic");
    }
    assert_eq!(conditions(&fake, "interceptorconfigs", "c"), of(&[VALID, IN_FORCE]));
    let asked = fake.written().len();
    assert!((1..6).contains(&asked), "{asked} of 60 asked");
}

fn refusal(name: Option<&str>, dst: &str) -> Refusal {
    let pod = PodIdentity {
        namespace: "shop".into(),
        name: "web".into(),
        uid: "shop-web".into(),
        service_account: "default".into(),
    };
    let (dst, name) = (dst.parse().expect("an address"), name.map(str::to_owned));
    let reason = Reason::NotRegistered;
    Refusal { pod: Arc::new(pod), dst, name, reason, audited: false }
}

/// A refusal is told on the pod, with what came nearest; again and again is one Event that counts.
#[tokio::test(start_paused = true)]
async fn refusals_are_events_on_the_pod() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let (listener, heard) = mpsc::channel(refusals::QUEUE);
    let told = tokio::spawn(Refusals::new(fake.client(), "n", node.agent.shared()).run(heard));
    for again in 0..3 {
        if again > 0 {
            tokio::time::sleep(Duration::from_secs(301)).await;
        }
        for _ in 0..100 {
            listener.send(refusal(Some("b.example.com"), "203.0.113.9:443")).await.expect("heard");
        }
        // What is no name is not passed on.
        listener.send(refusal(Some("evil\n<b>"), "203.0.113.9:25")).await.expect("heard");
    }
    drop(listener);
    told.await.expect("no panic");
    let events = fake.objects("events");
    assert_eq!(events.len(), 2, "{events:#?}");
    let of = |note: &str| {
        let found = events
            .iter()
            .find(|one| one["note"].as_str().is_some_and(|text| text.starts_with(note)));
        found.unwrap_or_else(|| panic!("no {note:?} in {events:#?}"))
    };
    let event =
        of("egress to b.example.com:443 refused (not_registered): no ServiceEntry that namespace \
                    shop sees is for it; nearest a.example.com:443 (TLS), ServiceEntry shop/a: ");
    let about = &event["regarding"];
    assert_eq!(
        (&about["kind"], &about["namespace"], &about["name"], &about["uid"]),
        (&json!("Pod"), &json!("shop"), &json!("web"), &json!("shop-web"))
    );
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("EgressRefused")));
    assert_eq!(event["metadata"]["namespace"], "shop");
    let real_time = event["series"]["count"].as_u64();
    assert_eq!(real_time, Some(3), "{event:#?}");
    of("egress to 203.0.113.9:25 refused");
    assert_eq!(fake.requests("POST ").len(), 2);
    assert!(fake.requests("POST ").iter().all(|line| line.contains("/namespaces/shop/events")));
}

/// Where Events may not be written, it is tried each ten minutes, and nothing else changes.
#[tokio::test(start_paused = true)]
async fn forbidden_events_are_no_storm() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    fake.fail_events(403);
    let (listener, heard) = mpsc::channel(refusals::QUEUE);
    let told = tokio::spawn(Refusals::new(fake.client(), "n", node.agent.shared()).run(heard));
    for number in 0..3600_u32 {
        listener.send(refusal(None, &format!("203.0.113.9:{}", number + 1))).await.expect("heard");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    drop(listener);
    told.await.expect("no panic");
    let asked = fake.requests("POST ").len();
    assert!((3..8).contains(&asked), "{asked} in an hour");
    assert_eq!(node.services("shop/web"), Some(vec!["a.example.com:443".to_owned()]));
}

/// T-47: one that was never good and names proxies lets nothing out past them; one without says nothing.
#[tokio::test(start_paused = true)]
async fn a_config_that_cannot_be_read_sends_nothing_round_its_proxies() {
    let fake = shop();
    fake.put(namespace("bank", json!({})));
    fake.put(pod("bank", "web", json!({})));
    fake.put(config("bank", "c", json!({"fastPath": true, "surprise": 1})));
    let proxies = json!([{"name": "corp", "url": "http://proxy.corp:3128", "surprise": 1}]);
    fake.put(config("shop", "c", json!({"egressProxy": {"proxies": proxies}})));
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let doors = |name: &str| {
        let state = node.agent.state();
        let (_, one) = state.pods().find(|(pod, _)| pod.to_string() == name).expect("a pod");
        state.policy(&one.pod).expect("a policy").store.current().policy.may_reroute()
    };
    assert!(doors("shop/web") && !doors("bank/web"));
    let told = conditions(&fake, "interceptorconfigs", "c");
    assert_eq!(told[0][..3], ["Accepted", "False", "Invalid"].map(str::to_owned));
}
