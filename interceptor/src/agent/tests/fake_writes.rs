//! What the server in the process lets a client write.

use super::*;

impl Fake {
    /// A status that is patched, or an Event that is made or counted on.
    pub(super) async fn write(&self, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let line = format!("{} {}", head.method, head.uri);
        let body = body.collect().await.expect("a body of ours").to_bytes();
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let parts: Vec<&str> = head.uri.path().trim_matches('/').split('/').collect();
        let mut server = self.lock();
        server.log.push(line);
        server.written.push(body.clone());
        if server.is_down {
            return status(503, "the server is down");
        }
        let (group, namespace, plural, name) = match parts.as_slice() {
            ["apis", group, version, "namespaces", namespace, "events", name @ ..] => {
                let name = name.first().map_or_else(|| name_of(&body).1, |name| (*name).to_owned());
                (format!("{group}/{version}"), *namespace, "events", name)
            }
            ["apis", group, version, "namespaces", namespace, plural, name, "status"] => {
                (format!("{group}/{version}"), *namespace, *plural, (*name).to_owned())
            }
            _ => return status(405, "no such verb here"),
        };
        let fault = server.fault(plural, |fault| match fault {
            Fault::Write(code) => Some(code),
            _ => None,
        });
        if let Some(answer) = fault {
            return answer;
        }
        let path = (group, plural.to_owned());
        let key = (namespace.to_owned(), name);
        if plural == "events" {
            if let Some(code) = server.events {
                return status(code, "as the test wants it");
            }
            server.objects.entry(path).or_default().insert(key, body.clone());
            return full(StatusCode::CREATED, &body);
        }
        let Some(known) = server.objects.get(&path).and_then(|all| all.get(&key)) else {
            return status(404, "no such object");
        };
        let mut object = known.clone();
        if object["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] {
            return status(409, "the object has been modified");
        }
        object["status"]["conditions"] = body["status"]["conditions"].clone();
        drop(server);
        self.put_at(&path, object.clone());
        full(StatusCode::OK, &object)
    }

    /// What was written so far, refused or not.
    pub(in crate::agent) fn written(&self) -> Vec<Value> {
        self.lock().written.clone()
    }

    /// The objects of a kind.
    pub(in crate::agent) fn objects(&self, plural: &str) -> Vec<Value> {
        let server = self.lock();
        let of_kind = server.objects.iter().filter(|((_, held), _)| held == plural);
        of_kind.flat_map(|(_, objects)| objects.values().cloned()).collect()
    }
}
