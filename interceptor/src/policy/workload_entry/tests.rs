//! SEV-24, SE-8, SE-7.

use super::super::resource::Resources;
use super::super::selection::selected;
use super::*;

fn read(spec: &str) -> (Vec<WorkloadEntry>, Findings) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: foo, namespace: bar}}\nspec: {{{spec}}}\n"
    );
    let mut out = Findings::default();
    let mut resources = Resources::default();
    resources.read(&Arc::from(std::path::Path::new("p.yaml")), &text, &mut out);
    (resources.workload_entries, out)
}

#[test]
fn sev_24_what_is_rejected() {
    for (spec, accepted) in [
        ("", false),
        ("address: ''", false),
        ("network: far", true),
        ("address: 172.16.1.1, ports: {'7777': 7777}", true),
        ("address: '2001:db8::1'", true),
        ("address: vm.example.com", true),
        ("address: vm.example.com, ports: {http: 80}", true),
        ("address: '@#$'", false),
        ("address: 300.1.1.1", false),
        ("address: 'unix:///sock'", true),
        ("address: 'unix://sock'", false),
        ("address: 'unix:///sock', ports: {http: 80}", false),
        ("address: 1.2.3.4, ports: {http: 0}", false),
        ("address: 1.2.3.4, ports: {http: 65536}", false),
        ("address: 1.2.3.4, ports: {'a b': 80}", false),
        ("address: 1.2.3.4, labels: {app: details, x.io/tier_1: ''}", true),
        ("address: 1.2.3.4, labels: {'': a}", false),
        ("address: 1.2.3.4, labels: {'-a': a}", false),
        ("address: 1.2.3.4, labels: {'/a': a}", false),
        ("address: 1.2.3.4, labels: {a: '.b'}", false),
        ("address: 1.2.3.4, weight: -1", false),
        ("address: 1.2.3.4, weight: 5, locality: a/b/c, serviceAccount: sa", true),
    ] {
        let (entries, out) = read(spec);
        assert!(out.errors.is_empty(), "{spec}: {out:?}");
        let idle = ["network:", "locality:", "serviceAccount:"];
        let idle = idle.iter().filter(|field| spec.contains(**field)).count();
        assert_eq!(out.warnings.len(), idle, "{spec}: {out:?}");
        assert_eq!(entries.len(), usize::from(accepted), "{spec}: {out:?}");
        assert_eq!(out.rejected.is_empty(), accepted, "{spec}: {out:?}");
    }
    let (_, out) = read("address: 1.2.3.4, nope: 1");
    assert_eq!(out.errors[0].path, "spec.nope");
}

#[test]
fn se_7_and_se_8_fields_selection_and_endpoint() {
    let spec = "address: 192.0.2.91, ports: {http: 8080}, labels: {app: details, v: '1'}, \
                weight: 3, locality: a/b/c, network: n, serviceAccount: sa";
    let entry = read(spec).0.remove(0);
    assert_eq!(entry.id().to_string(), "WorkloadEntry bar/foo");
    let workload = entry.to_workload().expect("a workload");
    let endpoint = workload.endpoint.clone();
    assert_eq!(endpoint.address, EndpointAddress::Ip([192, 0, 2, 91].into()));
    assert_eq!((endpoint.ports, endpoint.weight), (vec![("http".into(), 8080)], 3));
    let label = |k: &str, v: &str| (k.to_owned(), v.to_owned());
    for (namespace, selector, expected) in [
        ("bar", vec![label("app", "details")], true),
        ("bar", vec![label("app", "details"), label("v", "1")], true),
        ("bar", vec![label("app", "other")], false),
        ("bar", vec![label("app", "details"), label("x", "y")], false),
        ("bar", vec![], false),
        ("elsewhere", vec![label("app", "details")], false),
    ] {
        let found = selected(std::slice::from_ref(&workload), namespace, &selector);
        assert_eq!(found.count(), usize::from(expected), "{namespace} {selector:?}");
    }
    for (spec, weight) in [("address: 1.2.3.4", 1), ("address: 1.2.3.4, weight: 0", 1)] {
        assert_eq!(read(spec).0[0].weight, weight, "{spec}");
    }
    let unix = read("address: 'unix:///run/a.sock'").0.remove(0);
    let socket = EndpointAddress::Unix(Path::new("/run/a.sock").into());
    assert_eq!(unix.to_workload().expect("a workload").endpoint.address, socket);
    assert!(read("network: far").0.remove(0).to_workload().is_none());
}
