//! Whom an InterceptorConfig concerns, and what of it holds.

use std::path::PathBuf;

use crate::policy::{
    Caller, Enforcement, Inventory, OnRemoval, Snapshot, Sources, check_over, load,
};

/// One document: namespace, name, spec.
fn config(namespace: &str, name: &str, created: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: egress.interceptor.io/v1alpha1\nkind: InterceptorConfig\nmetadata: {{name: {name}, \
         namespace: {namespace}, creationTimestamp: \"2026-01-{created}T00:00:00Z\"}}\nspec: {{{spec}}}\n"
    )
}

fn sources(texts: &[String]) -> Sources {
    Sources { texts: vec![(PathBuf::new(), texts.concat())], ..Sources::default() }
}

fn caller(namespace: &str, labels: &[(&str, &str)]) -> Caller {
    let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Caller { namespace: namespace.to_owned(), labels: labels.collect() }
}

/// Of a cluster.
fn all(texts: &[String]) -> crate::policy::Checked {
    check_over(&sources(texts), &Inventory::default()).expect("good")
}

fn nets(snapshot: &Snapshot) -> Vec<String> {
    snapshot.bypass.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_most_specific_holds_field_by_field() {
    let checked = all(&[
        config(
            "istio-system",
            "mesh",
            "01",
            "fastPath: false, onPolicyRemoval: cut, limits: {connections: 90, connectionsPerWorkload: 9}",
        ),
        config(
            "shop",
            "shop",
            "01",
            "fastPath: true, bypassCIDRs: [10.0.0.0/8], limits: {connectionsPerWorkload: 8}",
        ),
        config("shop", "jobs", "02", "selector: {matchLabels: {app: job}}, bypassCIDRs: []"),
        config(
            "bank",
            "web",
            "01",
            "selector: {matchLabels: {app: web}}, bypassCIDRs: [192.0.2.0/24]",
        ),
        config(
            "istio-system",
            "probe",
            "02",
            "selector: {matchLabels: {probe: x}}, bypassCIDRs: ['2001:db8::/32']",
        ),
    ]);
    let compiled = |namespace, labels: &[_]| checked.compile(&caller(namespace, labels)).snapshot;
    let seen = |snapshot: &Snapshot| {
        let limits = &snapshot.limits;
        (snapshot.fast_path, nets(snapshot), limits.connections, limits.connections_per_workload)
    };
    let nobody = || Vec::<String>::new();
    let net = |net: &str| vec![net.to_owned()];
    for (namespace, labels, expected) in [
        ("other", &[][..], (false, nobody(), Some(90), Some(9))),
        ("shop", &[][..], (true, net("10.0.0.0/8"), Some(90), Some(8))),
        ("shop", &[("app", "job")][..], (true, nobody(), Some(90), Some(8))),
        ("bank", &[][..], (false, nobody(), Some(90), Some(9))),
        (
            "bank",
            &[("app", "web"), ("a", "b")][..],
            (false, net("192.0.2.0/24"), Some(90), Some(9)),
        ),
        ("other", &[("app", "web")][..], (false, nobody(), Some(90), Some(9))),
        ("other", &[("probe", "x")][..], (false, net("2001:db8::/32"), Some(90), Some(9))),
    ] {
        let snapshot = compiled(namespace, labels);
        assert_eq!(seen(&snapshot), expected, "{namespace} {labels:?}");
        assert_eq!(snapshot.on_removal, OnRemoval::Cut);
    }
    assert_eq!(checked.overruled(), []);
}

/// One namespace's owner has no say in what is everybody's, and of two that would be the namespace's the
/// older one is; both are told.
#[test]
fn what_is_not_in_force_is_said() {
    let checked = all(&[
        config(
            "shop",
            "loose",
            "02",
            "enforcement: istio, onDaemonLoss: closed, limits: {connections: 5, undecidedPerWorkload: 7}",
        ),
        config("shop", "late", "03", "fastPath: false"),
        config("shop", "only-web", "03", "selector: {matchLabels: {app: web}}, onLogLoss: refuse"),
    ]);
    let snapshot = checked.compile(&caller("shop", &[("app", "web")])).snapshot;
    assert_eq!(snapshot.enforcement, Enforcement::Strict);
    assert!(snapshot.fast_path && !snapshot.needs_log());
    assert_eq!((snapshot.limits.connections, snapshot.limits.undecided_per_workload), (None, 7));
    let said: Vec<_> = checked.overruled().iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "InterceptorConfig shop/loose: spec: not in force: enforcement, onDaemonLoss, \
             limits.connections of one without a selector in namespace istio-system only, since all \
             workloads share that",
            "InterceptorConfig shop/late: not in force: the older shop/loose holds for the namespace; put \
             both into one, or give this one a selector",
            "InterceptorConfig shop/only-web: spec: not in force: onLogLoss of one without a selector in \
             namespace istio-system only, since all workloads share that",
        ]
    );
    let mesh = all(&[config("istio-system", "mesh", "01", "enforcement: istio")]);
    assert_eq!(mesh.compile(&caller("shop", &[])).snapshot.enforcement, Enforcement::Istio);
}

/// With one workload only, as of `run`, all that concerns it is its own.
#[test]
fn a_lone_workload_has_no_neighbours() {
    let texts = [config("shop", "own", "01", "enforcement: istio, limits: {connections: 5}")];
    let loaded = load(&sources(&texts), &caller("shop", &[])).expect("good");
    assert_eq!(loaded.snapshot.enforcement, Enforcement::Istio);
    assert_eq!(
        (loaded.snapshot.limits.connections, loaded.warnings.as_slice()),
        (Some(5), &[][..])
    );
    // What names no namespace is for it, whatever its own: nothing goes round proxies of a file (T-47).
    let unnamed = [config("default", "c", "01", "limits: {connections: 6}")];
    let loaded = load(&sources(&unnamed), &caller("shop", &[])).expect("good");
    assert_eq!(
        (loaded.snapshot.limits.connections, loaded.warnings.as_slice()),
        (Some(6), &[][..])
    );
    // That it is somebody else's is said.
    let loaded = load(&sources(&texts), &caller("default", &[])).expect("good");
    assert_eq!(loaded.snapshot.enforcement, Enforcement::Strict);
    let said: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert!(
        said[0].contains("it is for namespace shop, and the workload is of default"),
        "{said:?}"
    );
}

#[test]
fn what_is_malformed_is_named() {
    for (spec, expected) in [
        (
            "bypassCIDRs: [10.1.0.0/8]",
            "spec.bypassCIDRs[0]: 10.1.0.0/8 has bits beyond its prefix; write 10.0.0.0/8",
        ),
        ("bypassCIDRs: [a.example.com]", "spec.bypassCIDRs[0]: \"a.example.com\" is not a network"),
        ("selector: {}", "spec.selector: selects nobody"),
        ("selector: {matchLabels: {}}", "spec.selector: selects nobody"),
        ("selector: {labels: {a: b}}", "spec.selector.labels: unknown field"),
    ] {
        let errors = load(&sources(&[config("shop", "c", "01", spec)]), &caller("shop", &[]));
        let errors = errors.err().unwrap_or_else(|| panic!("{spec} is accepted")).to_string();
        assert!(errors.contains(expected), "{spec}: {errors}");
    }
}
