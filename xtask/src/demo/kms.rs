//! The KMS of the demo: the embedded development server, or the Vault that the environment names.
//!
//! What an administrator of Vault would do is shown as `vault` commands. They are sent as the HTTP
//! requests that `vault` would send, because no machine is certain to have it; a Vault behind TLS is
//! left to the real command.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::shell::Shell;
use crate::process::{self, Background};

pub(super) struct Kms {
    url: String,
    token: String,
    /// Unique, so that a demo on somebody's Vault touches nothing of theirs.
    master_key: String,
    admin: Admin,
    /// The embedded server while it runs; `None` too when the KMS is somebody's Vault.
    server: Option<Background>,
    folder: PathBuf,
}

/// How administrative requests reach Vault.
enum Admin {
    Http {
        embedded: bool,
    },
    /// The `vault` command, which reads `VAULT_ADDR`, `VAULT_TOKEN` and the TLS settings itself.
    Command,
}

impl Kms {
    pub(super) fn start(shell: &Shell, folder: &Path) -> Result<Self> {
        let named = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let mut kms = match (named("VAULT_ADDR"), named("VAULT_TOKEN")) {
            (Some(url), Some(token)) => {
                let admin = if url.starts_with("http://") {
                    Admin::Http { embedded: false }
                } else if process::on_path("vault").is_some() {
                    Admin::Command
                } else {
                    bail!("VAULT_ADDR is https: for that the demo needs `vault` on PATH");
                };
                shell.note(&format!("the KMS is the Vault at {url} (VAULT_ADDR)"));
                Self::new(url, token, admin, folder)
            }
            (None, None) => {
                let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
                let admin = Admin::Http { embedded: true };
                Self::new(format!("http://{free}"), "root".to_owned(), admin, folder)
            }
            _ => bail!("set both VAULT_ADDR and VAULT_TOKEN to use your Vault, or neither"),
        };
        if kms.can_be_stopped() {
            kms.serve(shell)?;
        }
        Ok(kms)
    }

    fn new(url: String, token: String, admin: Admin, folder: &Path) -> Self {
        let master_key = format!("coffer-demo-{}", std::process::id());
        let url = url.trim_end_matches('/').to_owned();
        Self { url, token, master_key, admin, server: None, folder: folder.to_owned() }
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn master_key(&self) -> &str {
        &self.master_key
    }

    /// Whether it is ours to stop.
    pub(super) fn can_be_stopped(&self) -> bool {
        matches!(self.admin, Admin::Http { embedded: true })
    }

    fn serve(&mut self, shell: &Shell) -> Result<()> {
        let listen = self.url.trim_start_matches("http://");
        let state = self.folder.join("dev-vault.json").display().to_string();
        let arguments =
            ["dev", "vault", "--listen", listen, "--root-token", &self.token, "--state", &state];
        shell.typed(&format!("coffer {} &", arguments.join(" ")));
        let log = self.folder.join("dev-vault.log");
        let mut server = Background::start(&mut shell.command(&arguments), &log)?;
        let health = format!("{}/v1/sys/health", self.url);
        server.wait_until(|| ureq::get(&health).call().is_ok()).context("coffer dev vault")?;
        self.server = Some(server);
        Ok(())
    }

    pub(super) fn stop(&mut self, shell: &Shell) {
        if let Some(server) = self.server.take() {
            shell.typed(&format!("kill {}    # the KMS", server.id()));
        }
    }

    pub(super) fn come_back(&mut self, shell: &Shell) -> Result<()> {
        self.serve(shell)
    }

    /// Makes the master key, and in a file a token that may do with it what Coffer needs and
    /// nothing else.
    pub(super) fn set_up(&self, shell: &Shell) -> Result<()> {
        let key = &self.master_key;
        let mount = self.act(
            shell,
            &["secrets", "enable", "transit"],
            "POST",
            "sys/mounts/transit",
            json!({"type": "transit"}),
        );
        if let Err(error) = mount {
            if !error.to_string().contains("already in use") {
                return Err(error);
            }
            shell.note("transit is enabled already");
        }
        let path = format!("transit/keys/{key}");
        self.act(shell, &["write", "-f", &path], "POST", &path, json!({}))?;

        let file = self.folder.join("policy.hcl").display().to_string();
        let policy = shell.coffer_tee(&["fs", "kms", "policy", key], &file)?;
        self.act(
            shell,
            &["policy", "write", key, &file],
            "PUT",
            &format!("sys/policies/acl/{key}"),
            json!({ "policy": policy }),
        )?;
        let role = format!("auth/token/roles/{key}");
        self.act(
            shell,
            &["write", &role, &format!("allowed_policies={key}"), "period=768h", "orphan=true"],
            "POST",
            &role,
            json!({"allowed_policies": key, "period": "768h", "orphan": true}),
        )?;
        self.token(shell)
    }

    fn token(&self, shell: &Shell) -> Result<()> {
        let file = self.token_file();
        let role = format!("-role={}", self.master_key);
        shell.typed(&format!(
            "vault token create {role} -field=token > {0} && chmod 600 {0}",
            file.display()
        ));
        let token = match self.admin {
            Admin::Http { .. } => {
                let path = format!("auth/token/create/{}", self.master_key);
                let answer = self.request("POST", &path, json!({}))?;
                shell.note(&format!("done (POST /v1/{path})"));
                let token = answer["auth"]["client_token"].as_str();
                token.context("Vault answered without a token")?.to_owned()
            }
            Admin::Command => process::output(Command::new("vault").args([
                "token",
                "create",
                &role,
                "-field=token",
            ]))?,
        };
        let mut options = fs::OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&file)?
            .write_all(token.as_bytes())?;
        Ok(())
    }

    pub(super) fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// What `set-vault` needs besides, for a Vault whose certificate the system does not know.
    pub(super) fn options(&self) -> Vec<String> {
        match std::env::var("VAULT_CACERT") {
            Ok(file) if !self.can_be_stopped() && !file.is_empty() => {
                vec!["--ca-cert".to_owned(), file]
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn rotate(&self, shell: &Shell) -> Result<()> {
        let path = format!("transit/keys/{}/rotate", self.master_key);
        self.act(shell, &["write", "-f", &path], "POST", &path, json!({}))
    }

    /// Leaves somebody's Vault as it was, but for transit, which they may use.
    pub(super) fn tear_down(&self, shell: &Shell) -> Result<()> {
        if self.can_be_stopped() {
            return Ok(());
        }
        shell.step("Remove from your Vault what the demo made");
        let file = self.token_file();
        if let Ok(token) = fs::read_to_string(&file) {
            let path = "auth/token/revoke";
            let typed = ["write", path, &format!("token=@{}", file.display())];
            self.act(shell, &typed, "POST", path, json!({ "token": token }))?;
        }
        let key = format!("transit/keys/{}", self.master_key);
        let config = format!("{key}/config");
        let allow = ["write", &config, "deletion_allowed=true"];
        self.act(shell, &allow, "POST", &config, json!({"deletion_allowed": true}))?;
        let role = format!("auth/token/roles/{}", self.master_key);
        let policy = format!("sys/policies/acl/{}", self.master_key);
        for path in [&key, &role, &policy] {
            self.act(shell, &["delete", path], "DELETE", path, Value::Null)?;
        }
        Ok(())
    }

    /// One act of an administrator: shown as the `vault` command, done by it or as its request.
    fn act(
        &self,
        shell: &Shell,
        typed: &[&str],
        method: &str,
        path: &str,
        body: Value,
    ) -> Result<()> {
        shell.typed(&format!("vault {}", typed.join(" ")));
        match self.admin {
            Admin::Http { .. } => {
                self.request(method, path, body)?;
                shell.note(&format!("done ({method} /v1/{path})"));
            }
            Admin::Command => {
                let output = Command::new("vault").args(typed).output()?;
                if !output.status.success() {
                    bail!("vault: {}", String::from_utf8_lossy(&output.stderr).trim());
                }
                shell.note(String::from_utf8_lossy(&output.stdout).trim());
            }
        }
        Ok(())
    }

    fn request(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        let url = format!("{}/v1/{path}", self.url);
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(&url)
            .header("X-Vault-Token", &self.token)
            .body(if body.is_null() { String::new() } else { body.to_string() })?;
        let mut answer = agent.run(request).with_context(|| format!("{method} {url}"))?;
        let text = answer.body_mut().read_to_string()?;
        if !answer.status().is_success() {
            bail!("{method} {url}: {}: {}", answer.status(), text.trim());
        }
        Ok(if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? })
    }
}
