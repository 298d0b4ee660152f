//! Which pods get which policy, and what people are told.

use serde_json::json;

use super::super::kinds::Kind;
use super::super::pods::MODE;
use super::*;

#[tokio::test(start_paused = true)]
async fn labels_take_effect_while_a_pod_runs() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    let said = node.settle().await;
    assert!(said.contains(&"pod shop/web: enforce, by the default".to_owned()), "{said:?}");

    fake.put(namespace("shop", json!({MODE: "disabled"})));
    let said = node.settle().await;
    assert_eq!(said, ["pod shop/web: disabled, by the namespace's label"]);
    assert_eq!(node.services("shop/web"), None, "its policy is gone");

    fake.put(pod("shop", "web", json!({"app": "web", MODE: "audit"})));
    let said = node.settle().await;
    assert_eq!(said, ["pod shop/web: audit, by the pod's label"]);
    assert!(node.services("shop/web").is_some());

    fake.delete(Kind::Pod, "shop", "web");
    assert_eq!(node.settle().await, ["pod shop/web: gone"]);
    assert_eq!(node.generation(), 1, "nothing of this is policy");
}

#[tokio::test(start_paused = true)]
async fn each_pod_has_the_policy_of_its_namespace() {
    let fake = shop();
    fake.put(namespace("bank", json!({})));
    fake.put(pod("bank", "web", json!({"app": "web"})));
    fake.put(entry("bank", "b", "b.example.com"));
    fake.put(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "Sidecar",
        "metadata": {"name": "s", "namespace": "shop"},
        "spec": {"workloadSelector": {"labels": {"app": "shut"}}, "egress": [{"hosts": ["~/*"]}]},
    }));
    fake.put(pod("shop", "shut", json!({"app": "shut"})));
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let hosts = |name: &str| Some(vec![format!("{name}.example.com:443")]);
    assert_eq!(node.services("shop/web"), hosts("a"));
    assert_eq!(node.services("bank/web"), hosts("b"));
    assert_eq!(node.services("shop/shut"), Some(Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn messages_name_the_object_and_its_last_good_version_stays() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let mut bad = entry("shop", "a", "a.example.com");
    bad["spec"]["hosts"] = json!(["a_.*.com"]);
    fake.put(bad.clone());
    let said = node.settle().await.join("\n");
    let line = "left out: ServiceEntry shop/a: spec.hosts[0]: ";
    assert!(said.contains(line) && said.contains("; its last good version stays"), "{said}");
    assert_eq!(node.services("shop/web"), Some(vec!["a.example.com:443".to_owned()]));
    // What cannot be understood likewise, and the others move on.
    bad["spec"]["hosts"] = json!(["b.example.com"]);
    bad["spec"]["surprise"] = json!(true);
    fake.put(bad);
    fake.put(entry("shop", "c", "c.example.com"));
    let said = node.settle().await;
    assert_eq!(
        said,
        [
            "policy generation 3: +1 ServiceEntry",
            "left out: ServiceEntry shop/a: spec.surprise: unknown field; its last good version stays"
        ]
    );
    let both = |first: &str| Some([first, "c.example.com:443"].map(str::to_owned).to_vec());
    assert_eq!(node.services("shop/web"), both("a.example.com:443"));
    fake.put(entry("shop", "a", "b.example.com"));
    node.settle().await;
    assert_eq!(node.services("shop/web"), both("b.example.com:443"));
}

/// What nobody can tell the reach of holds everything back.
#[tokio::test(start_paused = true)]
async fn a_mesh_configuration_that_cannot_be_used_keeps_the_last_good_one() {
    let fake = shop();
    let mesh = |text: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": text},
        })
    };
    fake.put(mesh("outboundTrafficPolicy: {mode: SOMETIMES}\n"));
    let mut node = Node::start(&fake, Sources::default());
    let said = node.settle().await.join("\n");
    assert!(said.contains("no policy is in force") && said.contains("SOMETIMES"), "{said}");
    assert_eq!(node.services("shop/web"), None, "it is held");
    fake.put(mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"));
    node.settle().await;
    fake.put(mesh("outboundTrafficPolicy: {mode: SOMETIMES}\n"));
    fake.put(entry("shop", "c", "c.example.com"));
    let said = node.settle().await.join("\n");
    assert!(said.contains("; its last good version stays"), "{said}");
    assert_eq!(node.services("shop/web").map(|all| all.len()), Some(2), "the others move on");
}

#[tokio::test(start_paused = true)]
async fn the_mesh_configuration_is_followed() {
    let fake = shop();
    let mesh = |text: &str| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": text},
        })
    };
    let mut node = Node::start(&fake, Sources::default());
    let outbound = |node: &Node| {
        let state = node.agent.state();
        let (_, one) = state.pods().next().expect("a pod");
        state.policy(&one.pod).expect("a policy").store.current().outbound
    };
    node.settle().await;
    assert_eq!(outbound(&node), Outbound::AllowAny);
    fake.put(mesh("outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"));
    node.settle().await;
    assert_eq!(outbound(&node), Outbound::RegistryOnly);
    fake.delete(Kind::ConfigMap, "istio-system", "istio");
    node.settle().await;
    assert_eq!(outbound(&node), Outbound::AllowAny);
}
