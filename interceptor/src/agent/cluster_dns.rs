//! The cluster's name servers, by its Services and what is behind them. Pure.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use super::documents::Documents;
use super::kinds::{Kind, Name};

/// Where name servers listen.
const DNS: u16 = 53;

/// `given` or, without, the addresses of the Service `kube-system/kube-dns`; then the endpoints of the
/// Services that have them. A program that does kube-proxy's work at a cgroup's sockets sends a pod's
/// question to an endpoint before a packet is made, and the packet is what is judged.
pub(super) fn servers(documents: &Documents, given: &[SocketAddr]) -> Vec<SocketAddr> {
    let services: Vec<(&Name, Vec<IpAddr>)> = documents
        .of(Kind::Service)
        // Most of a large cluster's have nothing to do with it.
        .filter(|(name, text)| {
            is_by_convention(name)
                || given.iter().any(|server| text.contains(&server.ip().to_string()))
        })
        .map(|(name, text)| (name, addresses(&read(text))))
        .collect();
    let mut servers = given.to_vec();
    if servers.is_empty() {
        let ours = services.iter().filter(|(name, _)| is_by_convention(name));
        servers.extend(ours.flat_map(|(_, ips)| ips).map(|ip| SocketAddr::new(*ip, DNS)));
    }
    let is_ours = |ips: &[IpAddr]| servers.iter().any(|server| ips.contains(&server.ip()));
    let behind: Vec<&Name> =
        services.iter().filter(|(_, ips)| is_ours(ips)).map(|(name, _)| *name).collect();
    if behind.is_empty() {
        return servers;
    }
    for (name, text) in documents.of(Kind::EndpointSlice) {
        if behind
            .iter()
            .any(|service| service.namespace == name.namespace && text.contains(&*service.name))
        {
            let slice = read(text);
            let owner = slice.pointer("/metadata/labels/kubernetes.io~1service-name");
            if behind.iter().any(|service| {
                service.namespace == name.namespace
                    && owner.and_then(Value::as_str) == Some(&service.name)
            }) {
                servers.extend(endpoints(&slice));
            }
        }
    }
    servers.sort();
    servers.dedup();
    servers
}

fn is_by_convention(name: &Name) -> bool {
    name.namespace == "kube-system" && name.name == "kube-dns"
}

fn read(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

/// A Service's own addresses.
fn addresses(service: &Value) -> Vec<IpAddr> {
    let all = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let one = service.pointer("/spec/clusterIP");
    let texts = all.into_iter().flatten().chain(one).filter_map(Value::as_str);
    texts.filter_map(|text| text.parse().ok()).collect()
}

/// The endpoints of a slice at the ports that speak DNS: those named so, as kube-dns has them, and 53.
fn endpoints(slice: &Value) -> Vec<SocketAddr> {
    let list = |value: &Value, field: &str| value[field].as_array().cloned().unwrap_or_default();
    let is_dns = |port: &Value| {
        port["port"] == DNS || port["name"].as_str().is_some_and(|name| name.starts_with("dns"))
    };
    let ports: Vec<u16> = list(slice, "ports")
        .iter()
        .filter(|port| is_dns(port))
        .filter_map(|port| u16::try_from(port["port"].as_u64()?).ok())
        .collect();
    let addresses = list(slice, "endpoints").into_iter().flat_map(|one| list(&one, "addresses"));
    let ips: Vec<IpAddr> =
        addresses.filter_map(|ip| ip.as_str().and_then(|ip| ip.parse().ok())).collect();
    ips.iter().flat_map(|ip| ports.iter().map(|port| SocketAddr::new(*ip, *port))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::documents::{Event, Feed};
    use super::super::kinds::Object;
    use super::*;

    fn documents(objects: &[(Kind, Value)]) -> Documents {
        let mut documents = Documents::new([Kind::Service, Kind::EndpointSlice].map(Feed::all));
        for (kind, object) in objects {
            let object = Object::of(*kind, "v1", object).expect("a name");
            documents.apply(&Feed::all(*kind), Event::Put(object));
        }
        documents
    }

    fn service(namespace: &str, name: &str, ip: &str) -> (Kind, Value) {
        let metadata = json!({"name": name, "namespace": namespace});
        (
            Kind::Service,
            json!({"metadata": metadata, "spec": {"clusterIP": ip, "clusterIPs": [ip]}}),
        )
    }

    fn slice(namespace: &str, service: &str, ip: &str) -> (Kind, Value) {
        let labels = json!({"kubernetes.io/service-name": service});
        let object = json!({
            "metadata": {"name": format!("{service}-x"), "namespace": namespace, "labels": labels},
            "addressType": "IPv4", "endpoints": [{"addresses": [ip]}],
            "ports": [{"name": "dns", "port": 5353}, {"name": "metrics", "port": 9153}],
        });
        (Kind::EndpointSlice, object)
    }

    fn at(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn the_service_and_what_is_behind_it() {
        let objects = [
            service("kube-system", "kube-dns", "10.96.0.10"),
            service("shop", "kube-dns", "10.96.0.99"),
            slice("kube-system", "kube-dns", "10.1.0.5"),
            slice("kube-system", "other", "10.1.0.6"),
            slice("shop", "kube-dns", "10.1.0.7"),
        ];
        let known = documents(&objects);
        assert_eq!(servers(&known, &[]), at(&["10.1.0.5:5353", "10.96.0.10:53"]));
        // The command line goes before the convention, and what is behind it is known all the same.
        assert_eq!(
            servers(&known, &at(&["10.96.0.99:53"])),
            at(&["10.1.0.7:5353", "10.96.0.99:53"])
        );
        assert_eq!(servers(&known, &at(&["169.254.20.10:53"])), at(&["169.254.20.10:53"]));
        assert_eq!(servers(&documents(&[]), &[]), at(&[]));
    }
}
