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
    /// The seed of its faults, to see the same ones again.
    fault_seed: Option<u64>,
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
    let cli::DevVault { listen, allow_remote, root_token, state, faults, fault_seed } = arguments;
    if !listen.ip().is_loopback() && !allow_remote {
        let title = format!("the development KMS does not listen on {listen}");
        let why = "other machines would reach it, and it is for trying on this one";
        return Err(Problem::new(Exit::Usage, "invalid", title, why).cure(
            "name a loopback address, such as 127.0.0.1:8200, or accept it with --allow-remote",
        ));
    }
    let plan = fault_plan(faults.as_deref(), fault_seed)?;
    let fault_seed = plan.as_ref().map(|plan| plan.seed);
    let of_the_plan = if faults.is_some() { "the same --faults FILE and " } else { "" };
    crate::runtime()?.block_on(async {
        let mut builder = dev_vault::DevVault::builder().listen(listen).transit_key(KEY);
        if let Some(token) = &root_token {
            builder = builder.root_token(token.expose());
        }
        if let Some(path) = state {
            builder = builder.state_file(path);
        }
        if let Some(plan) = plan {
            builder = builder.fault_plan(plan);
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
            fault_seed,
        };
        console.answer(&started, output, |Started { url, master_key, .. }| {
            let faults = fault_seed.map(|seed| {
                format!("\nRequests meet faults. The same ones again: {of_the_plan}--fault-seed {seed}\n")
            });
            format!(
                "{}\nTo use it, with the token in a file:\n\n    coffer fs kms set-vault {url} {master_key} --token-file FILE\n{}",
                vault.banner(),
                faults.unwrap_or_default()
            )
        });
        crate::asked_to_end().await;
        vault.stop().await;
        Ok(Exit::Done)
    })
}

/// What its requests meet: the plan in this file, under this seed.
#[cfg(feature = "dev-vault")]
fn fault_plan(
    file: Option<&std::path::Path>,
    seed: Option<u64>,
) -> Result<Option<dev_vault::FaultPlan>, Problem> {
    let Some(file) = file else { return Ok(seed.map(dev_vault::FaultPlan::seeded)) };
    let read = std::fs::read(file).map_err(|e| e.to_string());
    let plan = read.and_then(|text| serde_json::from_slice(&text).map_err(|e| e.to_string()));
    let plan: dev_vault::FaultPlan = plan.map_err(|why| {
        let title = format!("{} is no plan of faults", file.display());
        Problem::new(Exit::Usage, "invalid", title, why)
            .cure("write it as the manual shows, such as {\"seed\": 7, \"percent\": 30}")
    })?;
    let seed = seed.unwrap_or(plan.seed);
    Ok(Some(dev_vault::FaultPlan { seed, ..plan }))
}

/// Built without one.
#[cfg(not(feature = "dev-vault"))]
pub(crate) fn run(_: cli::DevVault, _: &mut Console<'_>, _: Output) -> Result<Exit, Problem> {
    let title = "the development KMS can't start";
    Err(Problem::new(Exit::Usage, "dev-vault", title, "this program was built without it")
        .cure("build it with the feature dev-vault"))
}
