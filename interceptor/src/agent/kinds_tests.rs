//! What is kept of objects.

use super::*;

#[test]
fn what_no_policy_reads_is_no_change() {
    let object = |version: &str, extra: &str| {
        json!({
            "metadata": {
                "name": "e", "namespace": "shop", "resourceVersion": version, "uid": version,
                "generation": 1, "managedFields": [{"manager": extra}],
                "labels": {"a": "b"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": extra},
            },
            "spec": {"hosts": ["a.example.com"]},
        })
    };
    let of = |value: &Value| Object::of(Kind::ServiceEntry, "v1", value).expect("kept");
    let kept = of(&object("1", "x"));
    assert_eq!(kept.text, of(&object("2", "y")).text);
    let standing = kept.standing.clone().expect("it has conditions");
    assert_eq!((standing.generation, standing.resource_version.as_str()), (1, "1"));
    assert_eq!(
        kept.text,
        r#"{"apiVersion":"networking.istio.io/v1","kind":"ServiceEntry","metadata":{"labels":{"a":"b"},"name":"e","namespace":"shop"},"spec":{"hosts":["a.example.com"]}}"#
    );
    let read = Object { standing: None, ..kept.clone() };
    assert_eq!(Object::read(&kept.text), Some((Kind::ServiceEntry, read)));
    assert_eq!(Object::of(Kind::ServiceEntry, "v1", &json!({"metadata": {}})), None);
}

#[test]
fn a_pod_is_kept_without_its_environment() {
    let pod = json!({
        "metadata": {"name": "p", "namespace": "shop", "uid": "u",
            "annotations": {"traffic.sidecar.istio.io/excludeOutboundPorts": "1", "x": "y"}},
        "spec": {"nodeName": "n", "volumes": [{}], "serviceAccountName": "s",
            "priorityClassName": "high",
            "containers": [{"name": "c", "env": [{"name": "TOKEN", "value": "secret"}],
                "securityContext": {"privileged": true, "runAsUser": 7}}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "qosClass": "Burstable",
            "containerStatuses": [{"name": "c", "containerID": "containerd://x", "ready": true}]},
    });
    let kept = Object::of(Kind::Pod, "v1", &pod).expect("kept").text;
    for gone in ["secret", "volumes", "podIP", "ready", "\"x\"", "runAsUser"] {
        assert!(!kept.contains(gone), "{gone} in {kept}");
    }
    for there in [
        "excludeOutboundPorts",
        "{\"privileged\":true}",
        "\"high\"",
        "\"uid\":\"u\"",
        "containerd://x",
        "Burstable",
    ] {
        assert!(kept.contains(there), "{there} in {kept}");
    }
}

/// A ConfigMap that a workload's owner wrote must not become the mesh configuration.
#[test]
fn a_credential_is_nothing_else() {
    let map = json!({
        "metadata": {"name": "ca", "namespace": "shop"},
        "data": {"mesh": "outboundTrafficPolicy: {mode: ALLOW_ANY}", "ca.crt": "PEM"},
    });
    let kept = Object::of(Kind::ConfigMap, "v1", &map).expect("kept").text;
    assert!(kept.contains("ca.crt") && !kept.contains("mesh"), "{kept}");
    let mesh = Object::of_mesh(&map).expect("kept").text;
    assert!(mesh.contains("ALLOW_ANY") && !mesh.contains("PEM"), "{mesh}");
}

#[test]
fn odd_characters_stay_within_their_line() {
    let odd = "a&b\u{feff}\u{85}\u{2028}\u{7f}\n---\n# \u{1f600}é\t\"\\";
    let long = "k".repeat(5000);
    let wild = "\u{1}".repeat(300);
    let object = json!({"metadata": {"name": "e"}, "spec": {"x": odd, long.as_str(): odd, wild.as_str(): odd}});
    let kept = Object::of(Kind::ServiceEntry, "v1", &object).expect("kept").text;
    assert!(kept.chars().all(|c| !c.is_control() && c != '&' && c != '\u{feff}'), "{kept}");
    let json: Value = serde_json::from_str(&kept).expect("JSON");
    assert_eq!(json["spec"]["x"], odd);
    let yaml: Value = serde_saphyr::from_str(&kept).expect("YAML");
    assert_eq!(yaml["spec"]["x"], odd);
    assert_eq!(yaml["spec"][&long[..LONGEST_KEY]], odd, "and no longer: {kept}");
    assert_eq!(yaml["spec"]["?".repeat(300)], odd, "{kept}");
}
