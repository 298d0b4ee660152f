//! The cases again, with the resources in an API server and the caller a pod: the rules are those
//! that the agent made of them for that pod.

use serde_json::{Value, json};

use super::super::case::Role;
use super::*;
use crate::agent::pods::Mode;
use crate::agent::tests::Node;
use crate::agent::tests::fake::Fake;
use crate::policy::{Inventory, Place, Snapshot};

/// The kinds that the agent reads, as a server gives them: each in one version.
const GROUPS: [(&str, &[&str]); 4] = [
    (
        "networking.istio.io/v1",
        &["ServiceEntry", "WorkloadEntry", "VirtualService", "DestinationRule", "Sidecar"],
    ),
    ("telemetry.istio.io/v1", &["Telemetry"]),
    ("v1", &["Service", "Secret", "ConfigMap"]),
    ("discovery.k8s.io/v1", &["EndpointSlice"]),
];

fn put(fake: &Fake, resource: &Value) {
    let kind = resource["kind"].as_str().unwrap_or_default();
    let Some((version, _)) = GROUPS.iter().find(|(_, kinds)| kinds.contains(&kind)) else { return };
    let mut object = resource.clone();
    object["apiVersion"] = json!(version);
    if object["metadata"]["namespace"].is_null() {
        object["metadata"]["namespace"] = json!("default");
    }
    fake.put(object);
}

/// As [`rules`], by way of the agent.
pub(super) fn rules_by_agent(
    setting: &Setting,
    profile: Enforcement,
) -> Result<Loaded, LoadErrors> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let fake = Fake::with_istio();
        setting.resources.iter().for_each(|resource| put(&fake, resource));
        if !setting.mesh.is_empty() {
            fake.put(json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "istio", "namespace": "istio-system"},
                "data": {"mesh": Value::Object(setting.mesh.clone()).to_string()},
            }));
        }
        let caller = &setting.workload;
        let namespace = json!({"name": caller.namespace});
        fake.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace}));
        fake.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "caller", "namespace": caller.namespace, "uid": "1",
                "labels": caller.labels, "annotations": caller.annotations,
            },
            "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
            "status": {"phase": "Running"},
        }));
        let overrides = Sources {
            enforcement: Some(profile),
            dns_capture: setting.dns_capture,
            ..Sources::default()
        };
        let mut node = Node::start(&fake, overrides);
        let said = node.settle().await;
        let state = node.agent.state();
        let (_, pod) = state.pods().find(|(name, _)| name.name == "caller").expect("the caller");
        let lists = CaptureLists::default().replaced_by(&caller.annotations);
        assert_eq!(pod.pod.capture_lists(CaptureLists::default()), lists, "annotations");
        if pod.cover.mode == Mode::Disabled {
            // CAP-9: nothing of it is asked; the rules are those that nobody reads.
            let inject = "sidecar.istio.io/inject";
            assert_eq!(caller.labels.get(inject).map(String::as_str), Some("false"));
            assert_eq!(profile, Enforcement::Istio);
            return rules(setting, profile);
        }
        let Some(compiled) = state.policy(&pod.pod) else {
            let place = Place { file: PathBuf::new(), line: 0, column: 0, document: 0 };
            let message = said.join("\n");
            return Err(LoadErrors(vec![Notice {
                place,
                resource: None,
                path: String::new(),
                message,
            }]));
        };
        Ok(Loaded {
            snapshot: Snapshot::clone(&compiled.store.current()),
            warnings: compiled.warnings.clone(),
            rejected: Vec::new(),
            summary: compiled.summary,
            inventory: Inventory::default(),
        })
    })
}

/// What the agent leaves out: gateways, which are no workloads' callers, and pods as endpoints, of
/// which it knows its own node's only (docs/agent.md).
fn is_out_of_reach(setting: &Setting) -> bool {
    let is_pod = |resource: &Value| resource["kind"] == "Pod";
    setting.workload.role == Role::Gateway || setting.resources.iter().any(is_pod)
}

#[test]
fn the_agent_makes_the_same_of_a_case() {
    let (mut played, mut left, mut foreign, mut said) = (0, Vec::new(), 0, String::new());
    for (of, profile) in [
        ("istio", Enforcement::Istio),
        ("strict", Enforcement::Istio),
        ("strict", Enforcement::Strict),
    ] {
        for case in read(&[scenarios(of)], profile).expect("readable") {
            let Ok(Question { setting, kind: Kind::Flow { .. }, .. }) = &case.question else {
                continue;
            };
            if is_out_of_reach(setting) {
                left.push(case.id.clone());
                continue;
            }
            let text_of = serde_json::to_string(&setting.resources).expect("JSON");
            let shared = ["exportTo", "\"Sidecar\"", "workloadSelector", "sourceNamespace"];
            let has_other = setting.resources.iter().any(|one| {
                one["metadata"]["namespace"]
                    .as_str()
                    .is_some_and(|of| of != setting.workload.namespace)
            });
            foreign += usize::from(has_other || shared.iter().any(|word| text_of.contains(word)));
            played += 1;
            let result = run_by(&case, profile, &rules_by_agent);
            if result.is_err() {
                said.push_str(&text(&case, &result));
            }
        }
    }
    assert!(said.is_empty(), "{said}");
    assert_eq!(left, ["FLOW-GW-002", "OWN-REG-015", "OWN-REG-016"]);
    assert!(played >= 282 && foreign >= 28, "{played} cases, {foreign} of visibility");
}
