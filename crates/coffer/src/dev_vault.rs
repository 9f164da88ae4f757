//! `coffer dev vault`

use admin_api::{Exit, Problem};
use cli::{Console, Output};
#[cfg(feature = "dev-vault")]
use serde::Serialize;

/// How to use it. (Its root token is no secret: nothing that matters is under it.)
#[cfg(feature = "dev-vault")]
#[derive(Serialize)]
struct Started {
    url: String,
    root_token: String,
    unseal_key: String,
    master_key: &'static str,
}

/// Is a development KMS, until it is asked to end.
#[cfg(feature = "dev-vault")]
pub(crate) fn run(
    arguments: cli::DevVault,
    console: &mut Console<'_>,
    output: Output,
) -> Result<Exit, Problem> {
    /// The key that is there from the start, so that the first `set-vault` works.
    const KEY: &str = "coffer-key";
    let cli::DevVault { listen, allow_remote, root_token, state } = arguments;
    if !listen.ip().is_loopback() && !allow_remote {
        let title = format!("the development KMS does not listen on {listen}");
        let why = "other machines would reach it, and it is for trying on this one";
        return Err(Problem::new(Exit::Usage, "invalid", title, why).cure(
            "name a loopback address, such as 127.0.0.1:8200, or accept it with --allow-remote",
        ));
    }
    crate::runtime()?.block_on(async {
        let mut builder = dev_vault::DevVault::builder().listen(listen).transit_key(KEY);
        if let Some(token) = &root_token {
            builder = builder.root_token(token.expose());
        }
        if let Some(path) = state {
            builder = builder.state_file(path);
        }
        let vault = builder.start().await.map_err(|e| {
            let title = format!("the development KMS can't start on {listen}");
            Problem::new(Exit::Failed, "dev-vault", title, e.to_string())
                .cure("give it another address with --listen ADDR; port 0 takes a free one")
        })?;
        let started = Started {
            url: vault.url(),
            root_token: vault.root_token().to_owned(),
            unseal_key: vault.unseal_key().to_owned(),
            master_key: KEY,
        };
        console.answer(&started, output, |Started { url, master_key, .. }| {
            format!(
                "{}\nTo use it, with the token in a file:\n\n    coffer fs kms set-vault {url} {master_key} --token-file FILE\n",
                vault.banner()
            )
        });
        crate::asked_to_end().await;
        vault.stop().await;
        Ok(Exit::Done)
    })
}

/// Built without one.
#[cfg(not(feature = "dev-vault"))]
pub(crate) fn run(_: cli::DevVault, _: &mut Console<'_>, _: Output) -> Result<Exit, Problem> {
    let title = "the development KMS can't start";
    Err(Problem::new(Exit::Usage, "dev-vault", title, "this program was built without it")
        .cure("build it with the feature dev-vault"))
}
