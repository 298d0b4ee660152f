//! The cluster: whether the API server answers, what it lets us read, and what is there to be read.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Api, Client};
use tokio::time::timeout;

use super::super::kinds::{Kind, Name};
use super::super::watch::why;
use super::Finding;

/// What the agent would ask for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Its node.
    pub node: &'a str,
    /// The ConfigMap with the mesh configuration.
    pub mesh: &'a Name,
}

/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the agent does with all that it reads.
const VERBS: [&str; 2] = ["list", "watch"];

const ROLE: &str = "add it to the ClusterRole interceptor-agent (docs/agent.md)";

/// Looks at everything; at nothing more if the API server does not answer.
pub async fn look(client: &Client, wanted: &Wanted<'_>) -> Vec<Finding> {
    let server = server(client).await;
    let answers = server.verdict == super::Verdict::Good;
    let mut all = vec![server];
    if !answers {
        return all;
    }
    all.extend(rights(client, wanted).await);
    all.extend(writing(client).await);
    all.push(istio(client).await);
    all.push(mesh(client, wanted.mesh).await);
    all.push(pods(client, wanted.node).await);
    all
}

async fn server(client: &Client) -> Finding {
    const WHAT: &str = "API server";
    const FIX: &str =
        "the node must reach it: see KUBERNETES_SERVICE_HOST (apiServer.host), or KUBECONFIG";
    match timeout(PATIENCE, client.apiserver_version()).await {
        Ok(Ok(version)) => Finding::good(WHAT, version.git_version),
        Ok(Err(error)) => Finding::missing(WHAT, why(&error), FIX),
        Err(_) => Finding::missing(WHAT, format!("no answer in {} s", PATIENCE.as_secs()), FIX),
    }
}

/// One kind of object that has to be readable.
struct Right {
    group: &'static str,
    resource: &'static str,
    /// Only this one of them.
    only: Option<Name>,
    /// A part of it that has rights of its own.
    part: Option<&'static str>,
}

/// Everything that the agent reads whatever the cluster has. Secrets come with the rules that name
/// them.
fn needed(mesh: &Name) -> Vec<Right> {
    let everywhere = Kind::ALL
        .into_iter()
        .filter(|kind| !matches!(kind, Kind::ConfigMap | Kind::Secret))
        .map(|kind| Right { group: kind.group(), resource: kind.plural(), only: None, part: None });
    let definitions = Right {
        group: "apiextensions.k8s.io",
        resource: "customresourcedefinitions",
        only: None,
        part: None,
    };
    let mesh = Right {
        group: Kind::ConfigMap.group(),
        resource: Kind::ConfigMap.plural(),
        only: Some(mesh.clone()),
        part: None,
    };
    everywhere.chain([definitions, mesh]).collect()
}

/// Asks for each. What may be done is one line, what may not is one each.
async fn rights(client: &Client, wanted: &Wanted<'_>) -> Vec<Finding> {
    const WHAT: &str = "rights";
    let mut granted = 0;
    let mut refused = Vec::new();
    for right in needed(wanted.mesh) {
        let shown = match (&right.only, right.group) {
            (Some(name), _) => format!("{} {name}", right.resource),
            (None, "") => right.resource.to_owned(),
            (None, group) => format!("{}.{group}", right.resource),
        };
        for verb in VERBS {
            match may(client, &right, verb).await {
                Ok(true) => granted += 1,
                Ok(false) => refused.push(Finding::missing(
                    WHAT,
                    format!("may not {verb} {shown}"),
                    match &right.only {
                        Some(name) => {
                            format!("a Role in {} for this name (docs/agent.md)", name.namespace)
                        }
                        None => ROLE.to_owned(),
                    },
                )),
                Err(error) => refused.push(Finding::lacking(
                    WHAT,
                    format!("cannot ask whether it may {verb} {shown}: {error}"),
                    "let system:authenticated create SelfSubjectAccessReviews, as clusters do",
                )),
            }
        }
    }
    if granted > 0 {
        let found = format!("{granted} of {} that it needs", granted + refused.len());
        refused.insert(0, Finding::good(WHAT, found));
    }
    refused
}

/// What it may write: it runs without, and then people find less.
async fn writing(client: &Client) -> Vec<Finding> {
    const WHAT: &str = "telling";
    let statuses = Kind::ALL.into_iter().filter(|kind| kind.has_conditions());
    let statuses = statuses.map(|kind| (kind.group(), kind.plural(), Some("status"), "patch"));
    let events = ["create", "patch"].map(|verb| ("events.k8s.io", "events", None, verb));
    let mut lacking = Vec::new();
    for (group, resource, part, verb) in statuses.chain(events) {
        let right = Right { group, resource, only: None, part };
        if !matches!(may(client, &right, verb).await, Ok(true)) {
            let part = part.map(|part| format!("/{part}")).unwrap_or_default();
            let found =
                format!("may not {verb} {resource}{part}.{group}: that is said on the node only");
            lacking.push(Finding::lacking(WHAT, found, ROLE));
        }
    }
    if lacking.is_empty() {
        lacking.push(Finding::good(WHAT, "statuses of resources, Events on pods"));
    }
    lacking
}

async fn may(client: &Client, right: &Right, verb: &str) -> Result<bool, String> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(right.group.to_owned()),
                resource: Some(right.resource.to_owned()),
                subresource: right.part.map(str::to_owned),
                verb: Some(verb.to_owned()),
                namespace: right.only.as_ref().map(|name| name.namespace.clone()),
                name: right.only.as_ref().map(|name| name.name.clone()),
                ..ResourceAttributes::default()
            }),
            non_resource_attributes: None,
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = within(api.create(&PostParams::default(), &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn within<T>(asked: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(PATIENCE, asked).await {
        Ok(answer) => answer.map_err(|error| why(&error)),
        Err(_) => Err(format!("no answer in {} s", PATIENCE.as_secs())),
    }
}

/// Which of Istio's kinds are served, in which version.
async fn istio(client: &Client) -> Finding {
    const WHAT: &str = "Istio's kinds";
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut served, mut absent) = (Vec::new(), Vec::new());
    for kind in Kind::ALL.into_iter().filter(|kind| kind.is_istios()) {
        let mut version = None;
        for candidate in kind.versions() {
            let group = format!("{}/{candidate}", kind.group());
            if !groups.contains_key(&group) {
                let list = within(client.list_api_group_resources(&group)).await;
                // What is not served is answered with 404.
                let names = list.map(|list| list.resources.into_iter().map(|one| one.name));
                groups.insert(group.clone(), names.map(Iterator::collect).unwrap_or_default());
            }
            if groups[&group].iter().any(|name| name == kind.plural()) {
                version = Some(candidate);
                break;
            }
        }
        match version {
            Some(version) => served.push(format!("{kind} {version}")),
            None => absent.push(kind.name()),
        }
    }
    match absent.is_empty() {
        true => Finding::good(WHAT, served.join(", ")),
        false => Finding::lacking(
            WHAT,
            format!("not there: {}", absent.join(", ")),
            "they are watched as soon as they are there: helm install istio-base istio/base",
        ),
    }
}

async fn mesh(client: &Client, name: &Name) -> Finding {
    const WHAT: &str = "mesh config";
    let fix = "without one, destinations that no resource names pass, unless --outbound says otherwise; \
               --mesh-config-map names another";
    let api = dynamic(client, Kind::ConfigMap, Some(&name.namespace));
    let only = ListParams::default().fields(&format!("metadata.name={}", name.name));
    match within(api.list(&only)).await {
        Ok(list) => match list.items.first() {
            Some(map) if map.data.pointer("/data/mesh").is_some() => {
                Finding::good(WHAT, format!("ConfigMap {name}"))
            }
            Some(_) => Finding::lacking(WHAT, format!("ConfigMap {name} has no key mesh"), fix),
            None => Finding::lacking(WHAT, format!("there is no ConfigMap {name}"), fix),
        },
        Err(error) => Finding::lacking(WHAT, format!("ConfigMap {name}: {error}"), fix),
    }
}

/// A node's name that is wrong shows in that there is nothing on it.
async fn pods(client: &Client, node: &str) -> Finding {
    const WHAT: &str = "pods";
    let api = dynamic(client, Kind::Pod, None);
    let here = ListParams::default().fields(&format!("spec.nodeName={node}")).limit(1);
    match within(api.list(&here)).await {
        Ok(list) if !list.items.is_empty() => {
            Finding::good(WHAT, format!("there are some on {node}"))
        }
        Ok(_) => Finding::lacking(
            WHAT,
            format!("none has {node} as its node"),
            "give --node (NODE_NAME) the name of the Node object",
        ),
        Err(error) => Finding::missing(WHAT, error, ROLE),
    }
}

fn dynamic(client: &Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk(kind.group(), "v1", kind.name());
    let resource = ApiResource::from_gvk_with_plural(&gvk, kind.plural());
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}
