//! `cargo xtask image`: the node agent's image, without a container engine.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::install::Install;
use crate::shell::{answer, as_root, cargo, check, command, root, say};
use crate::toolchain;

/// Make target/image/interceptor-ARCH.tar, an image in OCI's layout: a static program and the CA
/// certificates of this machine, nothing else; beside it an SBOM. The same sources make the same bytes
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only lay the image's files into this directory
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Put this program in, instead of compiling one; it must need no shared library
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    install: Install,
}

/// Where CA certificates are, on Debian and in the image: what TLS origination trusts without a rule's
/// own.
const CERTIFICATES: &str = "etc/ssl/certs/ca-certificates.crt";

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = match &args.program {
        Some(program) => program.clone(),
        None => {
            build::kernel_side(&toolchain::set_up(&args.install)?)?;
            program()?
        }
    };
    let image = root().join("target/image");
    let files = args.directory.clone().unwrap_or_else(|| image.join("files"));
    lay(&program, &files)?;
    if args.directory.is_some() {
        return Ok(());
    }
    let packed = image.join(format!("interceptor-{}.tar", env::consts::ARCH));
    pack(&files, &image.join("layout"), &packed)?;
    let bill = image.join("interceptor.cdx.json");
    fs::write(&bill, bill_of_materials()?).with_context(|| bill.display().to_string())?;
    try_out(&packed, &image.join("root"))?;
    for made in [&packed, &bill] {
        say(format_args!("made {}", made.strip_prefix(root()).unwrap_or(made).display()));
    }
    Ok(())
}

/// Compiles it with the C library inside.
fn program() -> Result<PathBuf> {
    // Named, so that flags are not for build scripts and macros, which are loaded and not linked.
    let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let mut cargo = cargo("build");
    cargo.args(["--release", "--package", "interceptor", "--target", &target]);
    // Beside the other builds: with other flags in one directory, each would undo the other's work.
    cargo.env("CARGO_TARGET_DIR", root().join("target/image"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-C\x1ftarget-feature=+crt-static");
    check(build::own_object(&mut cargo))?;
    Ok(root().join("target/image").join(target).join("release/interceptor"))
}

/// The image's files, each in its place.
fn lay(program: &Path, files: &Path) -> Result<()> {
    anew(files)?;
    let certificates = files.join(CERTIFICATES);
    fs::create_dir_all(certificates.parent().context("it lies in a directory")?)?;
    let ours = Path::new("/").join(CERTIFICATES);
    fs::copy(&ours, &certificates).with_context(|| {
        format!("no CA certificates at {} (package ca-certificates)", ours.display())
    })?;
    let mut strip = command("strip");
    strip.arg("--strip-debug").arg("-o").arg(files.join("interceptor"));
    check(strip.arg(program))
}

fn anew(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| directory.display().to_string())?;
    }
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}

/// OCI's image layout (image-spec 1.1): blobs by their digest, and an index that leads to them.
fn pack(files: &Path, layout: &Path, packed: &Path) -> Result<()> {
    anew(layout)?;
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let layer = layout.join("layer");
    tar(files, &layer)?;
    let layer = Blob::of_file(layout, &layer)?;
    let (architecture, version) = (architecture()?, env!("CARGO_PKG_VERSION"));
    let config = Blob::of_text(
        layout,
        &format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{"User":"0:0","Entrypoint":["/interceptor"],"Env":["PATH=/"],"Labels":{{"org.opencontainers.image.title":"interceptor","org.opencontainers.image.version":"{version}","org.opencontainers.image.licenses":"Apache-2.0"}}}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
            layer.digest
        ),
    )?;
    let manifest = Blob::of_text(
        layout,
        &format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            config.descriptor("application/vnd.oci.image.config.v1+json", ""),
            layer.descriptor("application/vnd.oci.image.layer.v1.tar", ""),
        ),
    )?;
    let name = format!(
        r#","platform":{{"architecture":"{architecture}","os":"linux"}},"annotations":{{"org.opencontainers.image.ref.name":"{version}","io.containerd.image.name":"docker.io/library/interceptor:{version}"}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{}]}}"#,
        manifest.descriptor("application/vnd.oci.image.manifest.v1+json", &name)
    );
    fs::write(layout.join("index.json"), index)?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    tar(layout, packed)
}

/// What OCI calls this machine's architecture.
fn architecture() -> Result<&'static str> {
    match env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("no image is made for {other}"),
    }
}

/// An archive of what a directory holds that depends on nothing else: order, owners, modes and times are
/// fixed.
fn tar(directory: &Path, archive: &Path) -> Result<()> {
    let mut tar = command("tar");
    tar.args(["--create", "--format=ustar", "--sort=name", "--mtime=@0", "--owner=0", "--group=0"]);
    tar.args(["--numeric-owner", "--mode=u=rwX,go=rX", "--file"]).arg(archive);
    let mut names: Vec<_> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    // An archive that is being written in the directory itself is no part of it.
    names.retain(|name| directory.join(name) != archive);
    names.sort();
    check(tar.arg("--directory").arg(directory).args(names))
}

/// One file of the layout.
struct Blob {
    digest: String,
    size: u64,
}

impl Blob {
    /// Moves a file to where its digest says.
    fn of_file(layout: &Path, file: &Path) -> Result<Self> {
        let line = answer(command("sha256sum").arg(file)).context("sha256sum gives no digest")?;
        let digest =
            line.trim_start_matches('\\').get(..64).context("sha256sum's line")?.to_owned();
        let size = fs::metadata(file)?.len();
        fs::rename(file, layout.join("blobs/sha256").join(&digest))?;
        Ok(Self { digest, size })
    }

    fn of_text(layout: &Path, text: &str) -> Result<Self> {
        let file = layout.join("text");
        fs::write(&file, text)?;
        Self::of_file(layout, &file)
    }

    fn descriptor(&self, media_type: &str, more: &str) -> String {
        let Self { digest, size } = self;
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{digest}","size":{size}{more}}}"#)
    }
}

/// Whether the program in the archive runs where there is nothing else.
fn try_out(packed: &Path, directory: &Path) -> Result<()> {
    anew(directory)?;
    let unpack = |archive: &Path, into: &Path| {
        check(
            command("tar").arg("--extract").arg("--file").arg(archive).arg("--directory").arg(into),
        )
    };
    let layout = directory.join("layout");
    fs::create_dir(&layout)?;
    unpack(packed, &layout)?;
    let index = fs::read_to_string(layout.join("index.json"))?;
    let manifest = fs::read_to_string(layout.join(blob(&index, 0)?))?;
    // The first digest in a manifest is the configuration's.
    let empty = directory.join("empty");
    fs::create_dir(&empty)?;
    unpack(&layout.join(blob(&manifest, 1)?), &empty)?;

    let enter = || -> Result<_> {
        let mut chroot = as_root("chroot", "run the image's program from an empty root")?;
        chroot.arg(&empty).arg("/interceptor");
        Ok(chroot)
    };
    let version =
        answer(enter()?.arg("--version")).context("it does not run from an empty root")?;
    let expected = format!("interceptor {}\n", env!("CARGO_PKG_VERSION"));
    if version != expected {
        bail!("from an empty root it says {version:?}, not {expected:?}");
    }
    // Nothing of what it looks for is there, and it says so instead of ending.
    let output = enter()?.args(["agent", "--check", "--node", "none"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let told = ["✓ kernel ", "✗ cgroups ", "✗ bpffs ", "✗ API server "];
    if output.status.code() != Some(1) || !told.iter().all(|line| text.contains(line)) {
        bail!("from an empty root, agent --check ended with {} and said:\n{text}", output.status);
    }
    fs::remove_dir_all(directory).with_context(|| directory.display().to_string())
}

/// The path of the blob whose digest is the `number`th in a document.
fn blob(document: &str, number: usize) -> Result<String> {
    let digest = document.split("\"sha256:").nth(number + 1).and_then(|rest| rest.get(..64));
    Ok(format!("blobs/sha256/{}", digest.context("a document without digests")?))
}

/// What is compiled into the program, as CycloneDX 1.5 lists it.
fn bill_of_materials() -> Result<String> {
    let mut tree = cargo("tree");
    tree.args(["--locked", "--package", "interceptor", "--edges", "normal", "--prefix", "none"]);
    tree.args(["--target", &format!("{}-unknown-linux-gnu", env::consts::ARCH)]);
    let listed = answer(tree.args(["--no-dedupe", "--format", "{p}|{l}"])).context("cargo tree")?;
    bill(&listed)
}

/// The same of cargo's lines: `NAME vVERSION[ (WHERE)]|LICENSE`.
fn bill(listed: &str) -> Result<String> {
    let mut components = Vec::new();
    for line in listed.lines() {
        let (package, license) = line.split_once('|').context("a line of cargo tree")?;
        let mut words = package.split(' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            bail!("a line of cargo tree: {line}");
        };
        let version = version.trim_start_matches('v');
        let purl = format!("pkg:cargo/{name}@{version}");
        // Older crates write MIT/Apache-2.0.
        let license = license.replace('/', " OR ");
        let licenses = match license.as_str() {
            "" => String::new(),
            license => format!(r#","licenses":[{{"expression":"{license}"}}]"#),
        };
        components.push(format!(
            r#"{{"type":"library","bom-ref":"{purl}","name":"{name}","version":"{version}","purl":"{purl}"{licenses}}}"#
        ));
    }
    components.sort();
    components.dedup();
    let own = format!("pkg:cargo/interceptor@{}", env!("CARGO_PKG_VERSION"));
    components.retain(|component| !component.contains(&format!("\"{own}\"")));
    Ok(format!(
        "{{\"bomFormat\":\"CycloneDX\",\"specVersion\":\"1.5\",\"version\":1,\"metadata\":{{\"component\":\
         {{\"type\":\"application\",\"bom-ref\":\"{own}\",\"name\":\"interceptor\",\"version\":\"{}\",\"purl\":\"{own}\"}}}},\
         \"components\":[\n{}\n]}}\n",
        env!("CARGO_PKG_VERSION"),
        components.join(",\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bill_lists_each_crate_once_and_not_the_program() {
        let own = format!("interceptor v{} (/src)|Apache-2.0\n", env!("CARGO_PKG_VERSION"));
        let text =
            bill(&(own + "b v1.0.0|MIT/Apache-2.0\na v2.0.0 (proc-macro)|MIT\na v2.0.0|MIT\n"))
                .expect("made");
        let lines: Vec<_> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                r#"{"type":"library","bom-ref":"pkg:cargo/a@2.0.0","name":"a","version":"2.0.0","purl":"pkg:cargo/a@2.0.0","licenses":[{"expression":"MIT"}]},"#,
                r#"{"type":"library","bom-ref":"pkg:cargo/b@1.0.0","name":"b","version":"1.0.0","purl":"pkg:cargo/b@1.0.0","licenses":[{"expression":"MIT OR Apache-2.0"}]}"#,
                "]}",
            ]
        );
    }

    #[test]
    fn an_archive_depends_on_names_and_contents_only() {
        let directory = root().join("target/image-test");
        let bytes = |round: u64| {
            let files = directory.join("files");
            anew(&files).expect("made");
            let order = if round == 0 { ["b", "a"] } else { ["a", "b"] };
            for name in order {
                fs::write(files.join(name), name).expect("written");
                let time =
                    std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(round);
                let file = fs::File::options().write(true).open(files.join(name)).expect("open");
                file.set_modified(time).expect("set");
            }
            let archive = directory.join("archive.tar");
            tar(&files, &archive).expect("archived");
            fs::read(archive).expect("there")
        };
        assert_eq!(bytes(0), bytes(1_000_000));
        fs::remove_dir_all(&directory).expect("removed");
    }

    #[test]
    fn digests_lead_to_blobs() {
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let document = format!(r#"{{"config":"sha256:{a}","layers":["sha256:{b}"]}}"#);
        assert_eq!(blob(&document, 1).expect("there"), format!("blobs/sha256/{b}"));
        assert!(blob(&document, 2).is_err());
    }
}
