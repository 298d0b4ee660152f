//! A case's resources as the files that the product reads.

use std::fs;
use std::path::Path;

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use super::case::Case;
use super::tls::Certificates;

/// The resources: those of the case, with files of ours in the place of certificate files, and its
/// secrets.
///
/// # Errors
/// When a file can't be written or a secret is unknown.
pub(super) fn resources(case: &Case, at: &Path, certificates: &Certificates) -> Result<Vec<Value>> {
    let mut documents = case.resources.clone();
    let mut files = Files { at, certificates, identity: None };
    for document in &mut documents {
        files.replace(document)?;
    }
    let namespace = case.workload.namespace.as_deref().unwrap_or("default");
    for name in &case.network.secrets {
        documents.push(secret(name, namespace, certificates)?);
    }
    Ok(documents)
}

/// Resources as JSON documents in a YAML stream.
pub(super) fn stream(resources: &[Value]) -> String {
    resources.iter().map(|document| format!("---\n{document}\n")).collect()
}

/// The mesh configuration. The log goes to standard output, wherever the case wants it.
pub(super) fn mesh(case: &Case) -> String {
    let mut mesh = case.mesh.clone();
    mesh.remove("values");
    if let Some(metadata) = mesh.remove("proxyMetadata") {
        let config = mesh.entry("defaultConfig").or_insert_with(|| json!({}));
        config["proxyMetadata"] = metadata;
    }
    if let Some(Value::String(file)) = mesh.get_mut("accessLogFile")
        && !file.is_empty()
    {
        "/dev/stdout".clone_into(file);
    }
    Value::Object(mesh).to_string()
}

struct Files<'a> {
    at: &'a Path,
    certificates: &'a Certificates,
    identity: Option<(String, String)>,
}

impl Files<'_> {
    fn replace(&mut self, value: &mut Value) -> Result<()> {
        match value {
            Value::Array(items) => items.iter_mut().try_for_each(|item| self.replace(item)),
            Value::Object(map) => map.iter_mut().try_for_each(|(key, value)| {
                let path = value.as_str().filter(|text| text.starts_with('/')).map(str::to_owned);
                match (key.as_str(), path) {
                    (
                        "caCertificates" | "clientCertificate" | "privateKey" | "caCrl",
                        Some(path),
                    ) => {
                        *value = self.write(key, &path)?.into();
                        Ok(())
                    }
                    _ => self.replace(value),
                }
            }),
            _ => Ok(()),
        }
    }

    /// Writes what a path of the case stands for. A path that says that nothing is there stays.
    fn write(&mut self, key: &str, path: &str) -> Result<String> {
        if ["missing", "nonexistent", "absent"].iter().any(|word| path.contains(word)) {
            return Ok(path.to_owned());
        }
        let authority = self.certificates.authority();
        if self.identity.is_none() {
            self.identity = Some(authority.client("client.test")?);
        }
        let (certificate, private) = self.identity.clone().unwrap_or_default();
        let text = match key {
            "caCertificates" => authority.pem(),
            "clientCertificate" => certificate,
            "privateKey" => private,
            _ => authority.revocations(path.contains("revoked") || path.contains("listed"))?,
        };
        let file = self.at.join(format!("{key}.pem"));
        fs::write(&file, text)?;
        Ok(file.to_string_lossy().into_owned())
    }
}

/// A secret of the format's vocabulary.
fn secret(name: &str, namespace: &str, certificates: &Certificates) -> Result<Value> {
    let authority = certificates.authority();
    let (certificate, private) = authority.client("client.test")?;
    let mut data = Map::new();
    let mut put = |key: &str, text: &str| {
        data.insert(key.to_owned(), BASE64_STANDARD.encode(text).into());
    };
    match name {
        "fake-cred" => {
            put("ca.crt", "not a certificate");
            put("tls.crt", "not a certificate");
            put("tls.key", "not a key");
        }
        "good-cred" | "cred-with-crl" | "cred-with-dummy-crl" => {
            put("ca.crt", &authority.pem());
            put("tls.crt", &certificate);
            put("tls.key", &private);
            if name != "good-cred" {
                put("ca.crl", &authority.revocations(name == "cred-with-crl")?);
            }
        }
        other => bail!("no secret is `{other}`"),
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": data,
    }))
}
