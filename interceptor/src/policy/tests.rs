//! Loading: what is accepted, what is said, and the exact words and places of every refusal.

use std::path::Path;

use super::*;

/// Writes `files` into a directory and loads it, paths in messages cut to the file's name.
fn load_text(text: &str) -> Result<Loaded, Vec<String>> {
    load_with(text, &Sources { enforcement: Some(Enforcement::Strict), ..Sources::default() })
}

fn load_with(text: &str, sources: &Sources) -> Result<Loaded, Vec<String>> {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("p.yaml"), text).expect("written");
    let sources = Sources { files: vec![dir.path().to_owned()], ..sources.clone() };
    load(&sources, "default").map_err(|errors| lines(&errors.0, dir.path()))
}

fn load_mesh(text: &str, enforcement: Enforcement) -> Result<Loaded, Vec<String>> {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("mesh.yaml");
    std::fs::write(&file, text).expect("written");
    let sources = Sources {
        mesh_config: Some(file),
        enforcement: Some(enforcement),
        ..Sources::default()
    };
    load(&sources, "default").map_err(|errors| lines(&errors.0, dir.path()))
}

fn lines(notices: &[Notice], dir: &Path) -> Vec<String> {
    let prefix = format!("{}/", dir.display());
    notices.iter().map(|notice| notice.to_string().replace(&prefix, "")).collect()
}

#[test]
fn probe() {
    println!("{:?}", load_text("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: x\n  labels:\n    a: 1\nspec:\n  hosts: [a.com]\n  hots: 1\n  ports:\n  - number: 80\n    protocl: HTTP\n    name: http\n  location: FOO\n  - x\n"));
    println!("{:?}", load_text("a: [\n"));
    println!("{:?}", load_text("a: b: c\n"));
    println!("{:?}", load_text("a: 1\na: 2\n"));
    println!("{:?}", load_text("# nothing\n"));
    println!("{:?}", load_text("a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f]\n"));
    println!("{:?}", load_text("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata:\n  name: x\n  creationTimestamp: 2020-01-01T00:00:00Z\n  labels:\n    a: 1\n    b: yes\nspec:\n  hosts: [a.com]\n  hots: 1\n  ports:\n  - number: 80\n    protocl: HTTP\n    name: http\n  location: FOO\n---\n\n---\nkind: Foo\n---\nx\n"));
    println!("{:?}", load_text("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: istio\ndata:\n  mesh: |-\n    accessLogFile: /dev/stdout\n    accessLogFil: x\n"));
}
