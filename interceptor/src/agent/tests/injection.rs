//! CAP-9: pods that were left out of Istio's injection.

use serde_json::{Value, json};

use super::super::pods::{MODE, Mode, Pod};
use crate::policy::Enforcement::{self, Istio, Strict};

fn pod(labels: Value, annotations: Value) -> Pod {
    let object = json!({
        "metadata": {"name": "p", "namespace": "shop", "uid": "1", "labels": labels,
            "annotations": annotations},
    });
    Pod::parse(&object.to_string()).expect("a pod")
}

#[test]
fn istio_leaves_them_alone_and_strict_says_why_not() {
    const INJECT: &str = "sidecar.istio.io/inject";
    let out = || json!({INJECT: "false"});
    let table: [(Value, Value, Enforcement, Mode, usize); 7] = [
        (out(), json!({}), Istio, Mode::Disabled, 0),
        (json!({}), out(), Istio, Mode::Disabled, 0),
        // The label goes before the annotation.
        (json!({INJECT: "true"}), out(), Istio, Mode::Enforce, 0),
        // Ours goes before both.
        (json!({INJECT: "false", MODE: "enforce"}), json!({}), Istio, Mode::Enforce, 0),
        // Whoever wrote it meant another program.
        (out(), json!({}), Strict, Mode::Enforce, 1),
        (json!({INJECT: "false", MODE: "enforce"}), json!({}), Strict, Mode::Enforce, 0),
        (json!({INJECT: "false", MODE: "disabled"}), json!({}), Strict, Mode::Disabled, 0),
    ];
    let namespace = [(MODE.to_owned(), "enforce".to_owned())].into();
    for (row, (labels, annotations, profile, mode, notes)) in table.into_iter().enumerate() {
        let cover = pod(labels, annotations).cover(&namespace, Mode::Disabled, profile);
        assert_eq!((cover.mode, cover.notes.len()), (mode, notes), "row {row}: {cover:?}");
    }
}

/// What Istio's own data plane carries is covered only where the pod's own label asks; a namespace's was
/// written for its other pods.
#[test]
fn what_istio_carries_is_covered_where_the_pod_asks() {
    const AMBIENT: &str = "istio.io/dataplane-mode";
    let sidecar = |labels: Value, list: &str| {
        let object = json!({
            "metadata": {"name": "p", "namespace": "shop", "uid": "1", "labels": labels},
            "spec": {list: [{"name": "app"}, {"name": "istio-proxy"}]},
        });
        Pod::parse(&object.to_string()).expect("a pod")
    };
    let namespace = [(MODE.to_owned(), "enforce".to_owned())].into();
    for (which, plain, asking) in [
        (
            "container",
            sidecar(json!({}), "containers"),
            sidecar(json!({MODE: "enforce"}), "containers"),
        ),
        (
            "native sidecar",
            sidecar(json!({}), "initContainers"),
            sidecar(json!({MODE: "enforce"}), "initContainers"),
        ),
        (
            "ambient",
            pod(json!({AMBIENT: "ambient"}), json!({})),
            pod(json!({AMBIENT: "ambient", MODE: "enforce"}), json!({})),
        ),
    ] {
        for profile in [Istio, Strict] {
            let cover = plain.cover(&namespace, Mode::Enforce, profile);
            assert_eq!(cover.mode, Mode::Disabled, "{which}");
            assert!(cover.notes[0].starts_with("not covered: it "), "{which}: {cover:?}");
            let cover = asking.cover(&namespace, Mode::Disabled, profile);
            assert_eq!(
                (cover.mode, &*cover.because),
                (Mode::Enforce, "the pod's label"),
                "{which}"
            );
            assert!(cover.notes[0].ends_with("is judged too"), "{which}: {cover:?}");
        }
    }
}
