//! What the test decides about: resources and flows as generated, and the resources as YAML.

use std::fmt::Write as _;
use std::net::SocketAddr;

use interceptor::policy::{Enforcement, Outbound};

/// Everything that a policy is made of.
#[derive(Debug, Clone)]
pub(crate) struct World {
    pub(crate) profile: Enforcement,
    /// The mesh's; a Sidecar may say otherwise.
    pub(crate) mesh_mode: Outbound,
    pub(crate) entries: Vec<Entry>,
    pub(crate) virtuals: Vec<Virtual>,
    pub(crate) sidecars: Vec<Sidecar>,
}

/// A Sidecar.
#[derive(Debug, Clone)]
pub(crate) struct Sidecar {
    pub(crate) name: String,
    pub(crate) namespace: &'static str,
    pub(crate) created: Option<u8>,
    /// `team` of its `workloadSelector`.
    pub(crate) selects: Option<&'static str>,
    /// `outboundTrafficPolicy`, and `mode` in it.
    pub(crate) policy: Option<Option<&'static str>>,
    /// Of its only egress item; empty = there is none.
    pub(crate) hosts: Vec<&'static str>,
}

/// A ServiceEntry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) namespace: &'static str,
    /// Day of the year 2020.
    pub(crate) created: Option<u8>,
    pub(crate) labelled: bool,
    pub(crate) hosts: Vec<&'static str>,
    pub(crate) addresses: Vec<&'static str>,
    pub(crate) ports: Vec<Port>,
    pub(crate) resolution: &'static str,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) export_to: Vec<&'static str>,
}

/// A port, named after its number.
#[derive(Debug, Clone)]
pub(crate) struct Port {
    pub(crate) number: u16,
    pub(crate) protocol: &'static str,
    pub(crate) target: Option<u16>,
}

impl Port {
    pub(crate) fn name(&self) -> String {
        format!("p{}", self.number)
    }
}

/// An endpoint; `port` is its own for one of the entry's ports.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    pub(crate) address: &'static str,
    pub(crate) port: Option<(u16, u16)>,
    pub(crate) weight: Option<u32>,
}

/// What a client does.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    pub(crate) dst: SocketAddr,
    pub(crate) hello: Bytes,
    pub(crate) head: Head,
}

/// The first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bytes {
    Tls(Option<&'static str>),
    Http1,
    Http2,
    Opaque,
    Silent,
    Closed,
    Malformed,
}

/// A request head.
#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) method: &'static str,
    pub(crate) authority: Option<String>,
    pub(crate) hosts: Vec<String>,
    pub(crate) path: &'static str,
    /// Name in lower case and value.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) version: u8,
}

/// A VirtualService.
#[derive(Debug, Clone)]
pub(crate) struct Virtual {
    pub(crate) name: String,
    pub(crate) namespace: &'static str,
    pub(crate) created: Option<u8>,
    pub(crate) hosts: Vec<&'static str>,
    pub(crate) gateways: Vec<&'static str>,
    pub(crate) export_to: Vec<&'static str>,
    pub(crate) http: Vec<HttpRule>,
    pub(crate) tls: Vec<StreamRule>,
    pub(crate) tcp: Vec<StreamRule>,
}

#[derive(Debug, Clone)]
pub(crate) struct HttpRule {
    pub(crate) name: &'static str,
    pub(crate) matches: Vec<HttpMatch>,
    pub(crate) action: HttpAction,
    pub(crate) timeout: Option<u64>,
}

/// All of these; texts as exact, prefix or regex.
#[derive(Debug, Clone)]
pub(crate) struct HttpMatch {
    pub(crate) name: &'static str,
    pub(crate) uri: Option<Text>,
    pub(crate) method: Option<Text>,
    pub(crate) authority: Option<Text>,
    /// Of `x-k`; the empty text is presence.
    pub(crate) header: Option<Option<Text>>,
    pub(crate) without: Option<Option<Text>>,
    pub(crate) query: Option<Text>,
    pub(crate) port: Option<u16>,
    pub(crate) from: Option<&'static str>,
}

/// `exact`, `prefix` or `regex`, and the text.
pub(crate) type Text = (&'static str, &'static str);

#[derive(Debug, Clone)]
pub(crate) enum HttpAction {
    Route(Vec<Destination>),
    Redirect(u16),
    Reply(u16),
}

#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) host: &'static str,
    pub(crate) port: Option<u16>,
    pub(crate) subset: bool,
    pub(crate) weight: u32,
}

/// A `tls` or `tcp` rule with one match item.
#[derive(Debug, Clone)]
pub(crate) struct StreamRule {
    pub(crate) sni: Vec<&'static str>,
    pub(crate) port: Option<u16>,
    pub(crate) route: Vec<Destination>,
}

impl World {
    /// The resources as a file.
    pub(crate) fn yaml(&self) -> String {
        let mut out = String::new();
        for entry in &self.entries {
            entry.write(&mut out).expect("a String takes everything");
        }
        for service in &self.virtuals {
            service.write(&mut out).expect("a String takes everything");
        }
        for sidecar in &self.sidecars {
            sidecar.write(&mut out).expect("a String takes everything");
        }
        out
    }
}

impl Entry {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:")?;
        writeln!(out, "  name: {}\n  namespace: {}", self.name, self.namespace)?;
        if let Some(day) = self.created {
            writeln!(out, "  creationTimestamp: \"2020-01-{day:02}T00:00:00Z\"")?;
        }
        if self.labelled {
            writeln!(out, "  labels: {{team: blue}}")?;
        }
        writeln!(out, "spec:\n  resolution: {}", self.resolution)?;
        writeln!(out, "  hosts: {:?}\n  addresses: {:?}", self.hosts, self.addresses)?;
        writeln!(out, "  exportTo: {:?}\n  ports:", self.export_to)?;
        for port in &self.ports {
            write!(out, "  - {{number: {}, name: {}", port.number, port.name())?;
            if !port.protocol.is_empty() {
                write!(out, ", protocol: {}", port.protocol)?;
            }
            if let Some(target) = port.target {
                write!(out, ", targetPort: {target}")?;
            }
            writeln!(out, "}}")?;
        }
        if !self.endpoints.is_empty() {
            writeln!(out, "  endpoints:")?;
        }
        for endpoint in &self.endpoints {
            write!(out, "  - {{address: {}", endpoint.address)?;
            if let Some((service, own)) = endpoint.port {
                write!(out, ", ports: {{p{service}: {own}}}")?;
            }
            if let Some(weight) = endpoint.weight {
                write!(out, ", weight: {weight}")?;
            }
            writeln!(out, "}}")?;
        }
        Ok(())
    }
}

impl Sidecar {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata:")?;
        writeln!(out, "  name: {}\n  namespace: {}", self.name, self.namespace)?;
        if let Some(day) = self.created {
            writeln!(out, "  creationTimestamp: \"2020-01-{day:02}T00:00:00Z\"")?;
        }
        writeln!(out, "spec:")?;
        if let Some(team) = self.selects {
            writeln!(out, "  workloadSelector: {{labels: {{team: {team}}}}}")?;
        }
        match self.policy {
            None => {}
            Some(None) => writeln!(out, "  outboundTrafficPolicy: {{}}")?,
            Some(Some(mode)) => writeln!(out, "  outboundTrafficPolicy: {{mode: {mode}}}")?,
        }
        if !self.hosts.is_empty() {
            writeln!(out, "  egress: [{{hosts: {:?}}}]", self.hosts)?;
        }
        Ok(())
    }
}

impl Virtual {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:")?;
        writeln!(out, "  name: {}\n  namespace: {}", self.name, self.namespace)?;
        if let Some(day) = self.created {
            writeln!(out, "  creationTimestamp: \"2020-01-{day:02}T00:00:00Z\"")?;
        }
        writeln!(out, "spec:\n  hosts: {:?}\n  gateways: {:?}", self.hosts, self.gateways)?;
        writeln!(out, "  exportTo: {:?}", self.export_to)?;
        for (kind, rules) in [("tls", &self.tls), ("tcp", &self.tcp)] {
            if !rules.is_empty() {
                writeln!(out, "  {kind}:")?;
            }
            for rule in rules {
                let mut conditions = Vec::new();
                if !rule.sni.is_empty() {
                    conditions.push(format!("sniHosts: {:?}", rule.sni));
                }
                conditions.extend(rule.port.map(|port| format!("port: {port}")));
                if conditions.is_empty() {
                    writeln!(out, "  - route:")?;
                } else {
                    writeln!(out, "  - match: [{{{}}}]\n    route:", conditions.join(", "))?;
                }
                rule.route.iter().try_for_each(|to| to.write(out))?;
            }
        }
        if !self.http.is_empty() {
            writeln!(out, "  http:")?;
        }
        self.http.iter().try_for_each(|rule| rule.write(out))
    }
}

impl HttpRule {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "  - name: {:?}", self.name)?;
        if !self.matches.is_empty() {
            writeln!(out, "    match:")?;
        }
        self.matches.iter().try_for_each(|item| item.write(out))?;
        if let Some(seconds) = self.timeout {
            writeln!(out, "    timeout: {seconds}s")?;
        }
        match &self.action {
            HttpAction::Route(to) => {
                writeln!(out, "    route:")?;
                to.iter().try_for_each(|to| to.write(out))
            }
            HttpAction::Redirect(code) => {
                writeln!(out, "    redirect: {{uri: /new, redirectCode: {code}}}")
            }
            HttpAction::Reply(status) => writeln!(out, "    directResponse: {{status: {status}}}"),
        }
    }
}

impl HttpMatch {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        let text = |text: &Text| format!("{{{}: {:?}}}", text.0, text.1);
        let header = |want: &Option<Text>| want.as_ref().map_or("{}".to_owned(), text);
        write!(out, "    - {{name: {:?}", self.name)?;
        for (field, want) in
            [("uri", &self.uri), ("method", &self.method), ("authority", &self.authority)]
        {
            if let Some(want) = want {
                write!(out, ", {field}: {}", text(want))?;
            }
        }
        if let Some(want) = &self.header {
            write!(out, ", headers: {{x-k: {}}}", header(want))?;
        }
        if let Some(want) = &self.without {
            write!(out, ", withoutHeaders: {{x-k: {}}}", header(want))?;
        }
        if let Some(want) = &self.query {
            write!(out, ", queryParams: {{q: {}}}", text(want))?;
        }
        if let Some(port) = self.port {
            write!(out, ", port: {port}")?;
        }
        if let Some(from) = self.from {
            write!(out, ", sourceNamespace: {from}")?;
        }
        writeln!(out, "}}")
    }
}

impl Destination {
    fn write(&self, out: &mut String) -> std::fmt::Result {
        write!(out, "    - {{weight: {}, destination: {{host: {:?}", self.weight, self.host)?;
        if let Some(port) = self.port {
            write!(out, ", port: {{number: {port}}}")?;
        }
        if self.subset {
            write!(out, ", subset: v1")?;
        }
        writeln!(out, "}}}}")
    }
}
