//! Lists, watches, and what goes wrong with them.

use serde_json::json;

use super::super::kinds::Kind;
use super::fake::Fault;
use super::*;

const GONE: &str = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old resource version","reason":"Expired","code":410}}"#;

fn hosts(names: &[&str]) -> Option<Vec<String>> {
    Some(names.iter().map(|name| format!("{name}.example.com:443")).collect())
}

#[tokio::test(start_paused = true)]
async fn added_bookmark_gone_relist_deleted() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["a"]), "{:?}", node.said);

    fake.put(entry("shop", "b", "b.example.com"));
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["a", "b"]));

    // What follows a broken connection begins at the bookmark.
    fake.put(namespace("other", json!({})));
    fake.bookmark(Kind::ServiceEntry);
    node.settle().await;
    fake.disconnect();
    node.settle().await;
    let watches = fake.requests("serviceentries?&watch=true");
    let version = format!("resourceVersion={}", fake.version());
    let marked = watches.last().expect("a watch").contains(&version);
    assert!(marked && watches.len() >= 2, "{watches:#?}");
    assert!(watches.iter().all(|watch| watch.contains("allowWatchBookmarks=true")), "{watches:#?}");

    // Within the stream: the server asks for a new list.
    let lists = fake.requests("serviceentries?&limit").len();
    fake.lose(Kind::ServiceEntry, "shop", "b");
    fake.stream(Kind::ServiceEntry, &serde_json::from_str(GONE).expect("JSON"));
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["a"]));
    assert_eq!(fake.requests("serviceentries?&limit").len(), lists + 1);

    // As an HTTP status.
    fake.set_down(true);
    fake.delete(Kind::ServiceEntry, "shop", "a");
    fake.put(entry("shop", "c", "c.example.com"));
    fake.compact();
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["a"]), "the last good state");
    fake.set_down(false);
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["c"]));
    assert_eq!(fake.watching(Kind::ServiceEntry), 1);

    fake.delete(Kind::ServiceEntry, "shop", "c");
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&[]));
}

/// Not each a request at once, and not all at the same moment.
#[tokio::test(start_paused = true)]
async fn a_silent_server_is_not_stormed() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    fake.set_down(true);
    let before = fake.requests("").len();
    node.pass(10 * MINUTE).await;
    let asked = fake.requests("").len() - before;
    // 13 feeds, at most one request each 15 s once they have backed off.
    assert!((13..13 * 50).contains(&asked), "{asked} requests in ten minutes");
    assert_eq!(node.services("shop/web"), hosts(&["a"]), "ten minutes later");
    let said = node.said.join("\n");
    assert!(said.contains("serviceentries cannot be watched; what is known stays:"), "{said}");
    assert_eq!(said.matches("serviceentries cannot").count(), 1, "said once: {said}");
    fake.put(entry("shop", "b", "b.example.com"));
    fake.set_down(false);
    node.pass(3 * MINUTE).await;
    assert_eq!(node.services("shop/web"), hosts(&["a", "b"]));
    assert!(node.agent.troubles().is_empty(), "{:?}", node.agent.troubles());
}

#[tokio::test(start_paused = true)]
async fn a_long_list_comes_in_pages_and_counts_as_a_whole() {
    let fake = shop();
    for number in 0..1200 {
        fake.put(entry("shop", &format!("e{number}"), &format!("e{number}.example.com")));
    }
    // The token of the second page is refused once: the list begins anew.
    fake.fail(Kind::ServiceEntry, Fault::Page(410));
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let pages = fake.requests("serviceentries?&limit");
    assert_eq!(pages.len(), 5, "{pages:#?}");
    assert_eq!(node.services("shop/web").map(|all| all.len()), Some(1201));
    assert_eq!(node.generation(), 1, "no part of it was in force: {:?}", node.said);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_in_force_before_everything_is_known() {
    let fake = shop();
    for _ in 0..200 {
        fake.fail(Kind::Sidecar, Fault::List(403));
    }
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    assert_eq!((node.generation(), node.services("shop/web")), (0, None));
    let troubles = node.agent.troubles().join("\n");
    assert!(troubles.starts_with("sidecars: ") && troubles.contains("403"), "{troubles}");
    fake.fault_no_more();
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["a"]));
    assert!(
        node.said.iter().any(|line| line == "sidecars can be watched again"),
        "{:?}",
        node.said
    );
}

/// The right to read may be taken away later.
#[tokio::test(start_paused = true)]
async fn a_forbidden_watch_keeps_what_is_known() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    for _ in 0..200 {
        fake.fail(Kind::ServiceEntry, Fault::Watch(403));
    }
    fake.disconnect();
    fake.put(entry("shop", "b", "b.example.com"));
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["a"]));
    assert!(node.agent.troubles().join("\n").contains("403"), "{:?}", node.agent.troubles());
    fake.fault_no_more();
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&["a", "b"]));
}

#[tokio::test(start_paused = true)]
async fn kinds_are_watched_as_soon_as_they_appear_in_any_version() {
    let fake = Fake::default();
    fake.put(namespace("shop", json!({})));
    fake.put(pod("shop", "web", json!({})));
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    assert_eq!(node.services("shop/web"), hosts(&[]), "{:?}", node.agent.troubles());
    let mut old = entry("shop", "a", "a.example.com");
    old["apiVersion"] = json!("networking.istio.io/v1alpha3");
    for version in ["v1alpha3", "v1beta1"] {
        fake.define(Kind::ServiceEntry, version);
        old["apiVersion"] = json!(format!("networking.istio.io/{version}"));
        fake.put(old.clone());
        node.pass(std::time::Duration::from_secs(3)).await;
        assert_eq!(node.services("shop/web"), hosts(&["a"]), "{version}");
        let lists =
            fake.requests(&format!("/apis/networking.istio.io/{version}/serviceentries?&limit"));
        assert_eq!(lists.len(), 1, "{version}");
        fake.undefine(Kind::ServiceEntry);
        node.settle().await;
        assert_eq!(node.services("shop/web"), hosts(&[]), "{version} is gone");
    }
}

#[tokio::test(start_paused = true)]
async fn many_events_are_one_compilation() {
    let fake = shop();
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    assert_eq!(node.generation(), 1);
    for number in 0..300 {
        fake.put(entry("shop", &format!("e{number}"), &format!("e{number}.example.com")));
    }
    let said = node.settle().await;
    assert_eq!(node.generation(), 2, "{said:?}");
    assert_eq!(said, ["policy generation 2: +300 ServiceEntry"]);
    // What policy does not read is no change.
    let mut touched = entry("shop", "a", "a.example.com");
    touched["metadata"]["annotations"] = json!({"touched": "yes"});
    fake.put(touched);
    let said = node.settle().await;
    assert_eq!((node.generation(), said.as_slice()), (2, &[][..]));
}

#[tokio::test(start_paused = true)]
async fn only_this_nodes_pods_and_the_mesh_configuration_are_asked_for() {
    let fake = shop();
    let mut elsewhere = pod("shop", "far", json!({}));
    elsewhere["spec"]["nodeName"] = json!("m");
    fake.put(elsewhere);
    for name in ["istio", "other"] {
        fake.put(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "istio-system"},
            "data": {"mesh": format!("rootNamespace: {name}\n")},
        }));
    }
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    let names: Vec<_> = node.agent.state().pods().map(|(name, _)| name.to_string()).collect();
    assert_eq!(names, ["shop/web"]);
    let asked = |what: &str| {
        let requests = fake.requests(what);
        assert!(!requests.is_empty(), "{what}");
        requests
    };
    assert!(asked("/pods?").iter().all(|line| line.contains("fieldSelector=spec.nodeName%3Dn")));
    let named = "/api/v1/namespaces/istio-system/configmaps?";
    assert!(asked("configmaps").iter().all(|line| {
        line.starts_with(named) && line.contains("fieldSelector=metadata.name%3Distio")
    }));
    assert_eq!(fake.requests("secrets"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn secrets_are_asked_for_by_name_while_a_rule_names_them() {
    let rule = |namespace: &str, credential: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
            "metadata": {"name": "r", "namespace": namespace},
            "spec": {
                "host": "a.example.com",
                "workloadSelector": {"matchLabels": {"app": "web"}},
                "trafficPolicy": {"tls": {"mode": "SIMPLE", "credentialName": credential}},
            },
        })
    };
    let secret = |namespace: &str, name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace}, "data": {"ca.crt": "UEVN"},
        })
    };
    let fake = shop();
    for (namespace, name) in [("shop", "cred"), ("shop", "private"), ("bank", "cred")] {
        fake.put(secret(namespace, name));
    }
    // Nobody of this namespace runs here, so nobody here may know.
    fake.put(rule("bank", "cred"));
    let mut node = Node::start(&fake, registry_only());
    node.settle().await;
    assert_eq!(fake.requests("secrets"), [""; 0]);

    fake.put(rule("shop", "cred"));
    node.settle().await;
    let asked = fake.requests("secrets");
    let only = |line: &String| {
        line.starts_with("/api/v1/namespaces/shop/secrets?")
            && (line.contains("metadata.name%3Dcred&")
                || line.contains("metadata.name%3Dcred-cacert&"))
    };
    assert!(asked.iter().all(only) && asked.len() >= 2, "{asked:#?}");
    let credential = |node: &Node| {
        let state = node.agent.state();
        let (_, one) = state.pods().next().expect("a pod");
        state.policy(&one.pod).expect("a policy").store.current().credentials.get("cred")
    };
    let ca = credential(&node).expect("there").ca.clone();
    assert_eq!(ca.as_deref(), Some(b"PEM".as_slice()));

    fake.delete(Kind::DestinationRule, "shop", "r");
    node.settle().await;
    assert_eq!(fake.watching(Kind::Secret), 0);
    assert!(credential(&node).is_none());
}
