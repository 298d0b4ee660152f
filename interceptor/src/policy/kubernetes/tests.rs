//! REG-2, REG-12, SE-17, HTTP-9; TLS-9.

use std::sync::Arc;

use super::super::destination_rule::PortKind;
use super::super::entry::{Entry, Protocol};
use super::super::fields::Findings;
use super::super::resource::Resources;
use super::*;
use crate::decide::Group;
use crate::decide::host::HostName;

fn read(text: &str) -> (Resources, Findings) {
    let mut out = Findings::default();
    let mut resources = Resources::default();
    resources.read(&Arc::from(std::path::Path::new("p.yaml")), text, &mut out);
    (resources, out)
}

fn service(spec: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {{{spec}}}\n"
    )
}

const SLICE: &str = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
    metadata: {name: web-abc, namespace: shop, labels: {kubernetes.io/service-name: web}}\n\
    addressType: IPv4\nendpoints:\n- {addresses: [10.1.0.1], conditions: {ready: true}}\n\
    - {addresses: [10.1.0.2], conditions: {ready: false}}\n- {addresses: [10.1.0.3], nodeName: n}\n\
    ports: [{name: http, port: 8080, protocol: TCP}]\n";

/// The entry of the one Service of `text`, and whether a rule concerns it.
fn entry(text: &str, balanced: bool) -> Entry {
    let (resources, out) = read(text);
    assert!(out.errors.is_empty() && out.warnings.is_empty(), "{out:?}");
    let concerned = |host: &HostName| balanced && host.as_str() == "web.shop.svc.cluster.local";
    resources.services[0].to_entry(&resources.endpoint_slices, concerned).expect("an entry")
}

/// Addresses, endpoints and target ports of an entry, as text.
fn reached(entry: &Entry) -> String {
    let addresses: Vec<String> = entry.addresses.iter().map(ToString::to_string).collect();
    let endpoints: Vec<String> =
        entry.endpoints.iter().map(|e| format!("{:?}{:?}", e.address, e.ports)).collect();
    let ports: Vec<String> =
        entry.ports.iter().map(|p| format!("{}>{:?}", p.number, p.target_port)).collect();
    format!("{:?} {addresses:?} {endpoints:?} {ports:?}", entry.resolution).replace(['"', '\\'], "")
}

#[test]
fn reg_12_by_address_or_balanced() {
    let http = "ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-x, port: 9, targetPort: named}]";
    let cluster = service(&format!("clusterIP: 10.0.0.1, clusterIPs: [10.0.0.1], {http}"));
    let headless = service(&format!("clusterIP: None, {http}"));
    let external = service(&format!("type: ExternalName, externalName: db.example.com, {http}"));
    for (text, balanced, expected) in [
        (&cluster, false, "Static [10.0.0.1/32] [Ip(10.0.0.1)[]] [80>None, 9>None]"),
        (
            &cluster,
            true,
            "Static [10.0.0.1/32] [Ip(10.1.0.1)[(http, 8080)], Ip(10.1.0.3)[(http, 8080)]] [80>Some(8080), 9>None]",
        ),
        (&headless, true, "None [10.1.0.1/32, 10.1.0.3/32] [] [80>None, 9>None]"),
        (&headless, false, "None [10.1.0.1/32, 10.1.0.3/32] [] [80>None, 9>None]"),
        (&external, false, "Dns [] [Name(HostName(db.example.com))[]] [80>Some(8080), 9>None]"),
    ] {
        assert_eq!(reached(&entry(&format!("{text}{SLICE}"), balanced)), expected, "{text}");
    }
    // A TCP port without any address would take everybody's traffic.
    assert_eq!(reached(&entry(&headless, false)), "None [] [] [80>None]");
    let foreign = SLICE.replace("namespace: shop", "namespace: other");
    let found = entry(&format!("{cluster}{foreign}"), true);
    assert!(reached(&found).contains("[Ip(10.0.0.1)[]]"), "{}", reached(&found));
}

#[test]
fn reg_2_and_http_9_names() {
    let text = service("clusterIP: 10.0.0.1, ports: [{port: 80}]")
        .replace("shop}", "shop, annotations: {networking.istio.io/exportTo: '., other'}}");
    let entry = entry(&text, false);
    assert_eq!(entry.hosts[0].to_string(), "web.shop.svc.cluster.local");
    let platform = entry.platform.clone().expect("a platform service");
    assert_eq!(platform.local_name.as_str(), "web");
    let short: Vec<&str> = platform.short_names.iter().map(|name| name.as_str()).collect();
    assert_eq!(short, ["web.shop", "web.shop.svc"]);
    assert_eq!(entry.export_to, ["other", "shop"]);
    assert_eq!(entry.id.to_string(), "Service shop/web");
}

#[test]
fn se_17_protocols() {
    use Group::{Http, Sniffed, Tcp, Tls};
    for (port, expected, kind) in [
        ("name: http, port: 1", Some((Http, false)), PortKind::Http1),
        ("name: http-web, port: 1", Some((Http, false)), PortKind::Http1),
        ("name: http2-x, port: 1", Some((Http, false)), PortKind::Http2),
        ("name: grpc, port: 1", Some((Http, false)), PortKind::Http2),
        ("name: grpc-web, port: 1", Some((Http, false)), PortKind::Http1),
        ("name: grpc-web-x, port: 1", Some((Http, false)), PortKind::Http1),
        ("name: HTTPS-x, port: 1", Some((Tls, false)), PortKind::Opaque),
        ("name: mysql, port: 1", Some((Tcp, true)), PortKind::Opaque),
        ("name: httpx, port: 1", Some((Sniffed, false)), PortKind::Sniffed),
        ("port: 1", Some((Sniffed, false)), PortKind::Sniffed),
        ("port: 3306", Some((Tcp, false)), PortKind::Opaque),
        ("name: http, port: 3306", Some((Http, false)), PortKind::Http1),
        ("name: http, appProtocol: tcp, port: 1", Some((Tcp, false)), PortKind::Opaque),
        (
            "name: tcp, appProtocol: kubernetes.io/h2c, port: 1",
            Some((Http, false)),
            PortKind::Http2,
        ),
        ("name: http, appProtocol: example.com/x, port: 1", Some((Http, false)), PortKind::Http1),
        ("name: http, protocol: UDP, port: 1", None, PortKind::Opaque),
    ] {
        let found = entry(&service(&format!("clusterIP: 10.0.0.1, ports: [{{{port}}}]")), false);
        let protocol = match found.ports[0].protocol {
            Protocol::Stream(group, exclusive) => Some((group, exclusive)),
            Protocol::Udp => None,
        };
        assert_eq!((protocol, found.ports[0].kind), (expected, kind), "{port}");
    }
    let sctp = entry(&service("clusterIP: 10.0.0.1, ports: [{protocol: SCTP, port: 1}]"), false);
    assert!(sctp.ports.is_empty());
}

#[test]
fn services_that_cannot_be_reached_are_said_and_left_out() {
    for (spec, path) in [
        ("ports: [{port: 80}]", "spec.clusterIP"),
        ("type: ExternalName, externalName: 'a b'", "spec.externalName"),
    ] {
        let (resources, out) = read(&service(spec));
        assert!(resources.services.is_empty() && out.errors.is_empty());
        assert_eq!(out.warnings[0].path, path);
    }
    let (_, out) = read(&service("clusterIP: 10.0.0.1, ports: [{port: 70000}]"));
    assert_eq!(out.errors[0].path, "spec.ports[0].port");
}

/// What `name` holds for `namespace`: certificate, key, CA, CRL.
fn parts(store: &SecretStore, namespace: &str, name: &str) -> Option<[Option<String>; 4]> {
    let text = |bytes: Option<Arc<[u8]>>| {
        bytes.map(|bytes| String::from_utf8(bytes.to_vec()).expect("text"))
    };
    let found = store.keyring(namespace).get(name)?;
    let Credentials { certificate, key, ca, crl, .. } = Credentials::clone(&found);
    Some([certificate, key, ca, crl].map(text))
}

#[test]
fn tls_9_secrets_and_config_maps() {
    let secret = |name: &str, body: &str| {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: a}}\n{body}\n"
        )
    };
    let map = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: roots, namespace: a}\n\
               data: {ca.crt: CA, tls.key: ignored, other: x}\n";
    let text = [
        secret("tls", "type: kubernetes.io/tls\ndata: {tls.crt: Q1JU, tls.key: S0VZ, ca.crt: Q0E=, ca.crl: Q1JM}"),
        secret("generic", "stringData: {cert: CRT, key: KEY, cacert: CA, crl: CRL, tls.crt: other}"),
        secret("split", "stringData: {cert: CRT, key: KEY}"),
        secret("split-cacert", "stringData: {cacert: CA2}"),
        secret("both", "stringData: {cert: CRT, key: KEY, cacert: CA}"),
        secret("both-cacert", "stringData: {cacert: unused}"),
        secret("alone-cacert", "stringData: {cacert: CA3}"),
        secret("empty", "data: {tls.crt: ''}"),
        secret("broken", "data: {tls.crt: 'c2VjcmV0IQ', tls.key: S0VZ}"),
        map.to_owned(),
    ]
    .concat();
    let (resources, out) = read(&text);
    assert!(out.errors.is_empty() && out.warnings.is_empty(), "{out:?}");
    let said: Vec<String> = out.rejected.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1);
    assert!(said[0].contains("Secret a/broken: data.tls.crt: not base64"), "{said:?}");
    assert!(!said[0].contains("c2Vj"), "the text of a secret: {said:?}");

    let some = |text: &str| Some(text.to_owned());
    let all = [some("CRT"), some("KEY"), some("CA"), some("CRL")];
    let store = &resources.secrets;
    for (namespace, name, expected) in [
        ("a", "tls", Some(all.clone())),
        ("a", "kubernetes://tls", Some(all.clone())),
        ("a", "generic", Some(all)),
        ("b", "tls", None),
        ("a", "nope", None),
        ("a", "broken", None),
        ("a", "split", Some([some("CRT"), some("KEY"), some("CA2"), None])),
        ("a", "both", Some([some("CRT"), some("KEY"), some("CA"), None])),
        ("a", "alone", Some([None, None, some("CA3"), None])),
        ("a", "empty", Some([None, None, None, None])),
        ("a", "roots", None),
        ("a", "configmap://roots", Some([None, None, some("CA"), None])),
        ("a", "configmap://tls", None),
    ] {
        assert_eq!(parts(store, namespace, name), expected, "{namespace} {name}");
    }
}

#[test]
fn credentials_are_never_printed() {
    let (resources, _) = read(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: a}\n\
         stringData: {tls.crt: HUSH, tls.key: HUSH}\n",
    );
    let bytes = format!("{:?}", b"HUSH");
    let bytes = bytes.trim_matches(['[', ']']);
    for shown in [
        format!("{resources:?}"),
        format!("{:?}", resources.secrets),
        format!("{:?}", resources.secrets.keyring("a").get("s").expect("it")),
    ] {
        assert!(shown.contains("certificate: true, key: true, ca: false"), "{shown}");
        assert!(!shown.contains("HUSH") && !shown.contains(bytes), "{shown}");
    }
}
