//! The last good state on disk, and a start without an API server.

use std::fs;

use serde_json::json;

use super::*;
use crate::policy::{Caller, load};

/// A node that has settled once and written, ended as by a kill; its disk.
async fn ended(fake: &Fake) -> tempfile::TempDir {
    let disk = tempfile::tempdir().expect("a directory");
    let mut node = Node::start_on(fake, registry_only(), Some(disk));
    node.settle().await;
    node.disk.take().expect("its disk")
}

#[tokio::test(start_paused = true)]
async fn a_start_without_an_api_server_has_the_last_good_state() {
    let fake = shop();
    let disk = ended(&fake).await;
    fake.set_down(true);
    let mut node = Node::start_on(&fake, registry_only(), Some(disk));
    let said = node.settle().await.join("\n");
    assert!(said.contains("took up the last state on disk: 3 objects"), "{said}");
    let a = Some(vec!["a.example.com:443".to_owned()]);
    assert_eq!(node.services("shop/web"), a);
    // A part of what the server has is not yet policy.
    for _ in 0..100 {
        fake.fail(super::super::kinds::Kind::Sidecar, fake::Fault::List(500));
    }
    fake.put(entry("shop", "b", "b.example.com"));
    fake.set_down(false);
    node.settle().await;
    assert_eq!(node.services("shop/web"), a);
    fake.fault_no_more();
    node.settle().await;
    assert_eq!(node.services("shop/web").map(|all| all.len()), Some(2));
}

/// The file is one for `-f`, too.
#[tokio::test(start_paused = true)]
async fn the_policy_file_is_a_policy_file() {
    let fake = shop();
    fake.put(json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": "istio-system"},
        "data": {"mesh": "outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n"},
    }));
    let disk = ended(&fake).await;
    let sources = Sources { files: vec![disk.path().join("policy.yaml")], ..Sources::default() };
    let loaded = load(&sources, &Caller::new("shop")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(loaded.summary.service_entries, 1);
    assert_eq!(loaded.snapshot.outbound, Outbound::RegistryOnly);
}

/// What is in force is kept, not what was said last: a restart without a server changes nothing.
#[tokio::test(start_paused = true)]
async fn what_stands_in_for_an_object_is_kept() {
    let fake = shop();
    let mut node =
        Node::start_on(&fake, registry_only(), Some(tempfile::tempdir().expect("a directory")));
    node.settle().await;
    for name in ["a", "z"] {
        let mut bad = entry("shop", name, &format!("{name}.example.com"));
        bad["spec"]["surprise"] = json!(1);
        fake.put(bad);
    }
    node.settle().await;
    let both = ["a.example.com:443", "z.example.com:443"].map(str::to_owned).to_vec();
    assert_eq!(node.services("shop/web"), Some(both.clone()));
    let disk = node.disk.take().expect("its disk");
    drop(node);
    fake.set_down(true);
    let file = disk.path().join("policy.yaml");
    let node = Node::start_on(&fake, registry_only(), Some(disk));
    assert_eq!(node.services("shop/web"), Some(both));
    // For `explain -f`, too.
    let sources = Sources { files: vec![file], ..registry_only() };
    load(&sources, &Caller::new("shop")).unwrap_or_else(|errors| panic!("{errors}"));
}

#[tokio::test(start_paused = true)]
async fn a_set_that_cannot_be_used_is_not_kept() {
    let fake = shop();
    let disk = ended(&fake).await;
    let file = disk.path().join("policy.yaml");
    let before = fs::read_to_string(&file).expect("there");
    let mut node = Node::start_on(&fake, registry_only(), Some(disk));
    node.settle().await;
    // Nobody can tell which hosts it restricts.
    fake.put(json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "v", "namespace": "shop"}, "spec": {"hosts": [1]},
    }));
    fake.put(entry("shop", "z", "z.example.com"));
    let said = node.settle().await.join("\n");
    assert!(said.contains("stays in force") && said.contains("VirtualService shop/v"), "{said}");
    node.agent.write().await;
    assert_eq!(fs::read_to_string(&file).expect("there"), before);
    fake.delete(super::super::kinds::Kind::VirtualService, "shop", "v");
    node.settle().await;
    assert!(fs::read_to_string(&file).expect("there").contains("z.example.com"));
}

#[tokio::test(start_paused = true)]
async fn a_broken_state_is_said_and_left_aside() {
    let fake = shop();
    let disk = ended(&fake).await;
    let file = disk.path().join("policy.yaml");
    let text = fs::read_to_string(&file).expect("there");
    fs::write(&file, &text[..text.len() / 2]).expect("written");
    fake.set_down(true);
    let mut node = Node::start_on(&fake, registry_only(), Some(disk));
    let said = node.settle().await.join("\n");
    assert!(said.contains("the last state on disk is left aside"), "{said}");
    assert_eq!((node.generation(), node.services("shop/web")), (0, None));
}
