//! `coffer fs kms policy`

use admin_api::{Exit, KmsPolicy, Problem};
use cli::{Console, Output};
use kms_core::{KmsError, Policy};

/// Prints the policy with the commands as comments, so that it can be piped to `vault policy write`.
pub(crate) fn run(
    arguments: &cli::Policy,
    console: &mut Console<'_>,
    output: Output,
) -> Result<Exit, Problem> {
    let settings =
        arguments.transit_path.iter().map(|path| ("transit_path".to_owned(), path.clone()));
    let policy = vault_transit::policy(&arguments.master_key_name, &settings.collect());
    let Policy { text, commands } = policy.map_err(|e| of_kms(&e))?;
    console.answer(&KmsPolicy { policy: text, commands }, output, |policy| {
        let comments: String = policy.commands.iter().map(|c| format!("#   {c}\n")).collect();
        format!(
            "{}# To apply it, and to make a token under it. It takes the place of the policy that is there: name every\n\
             # master key that the token is for.\n{comments}",
            policy.policy
        )
    });
    Ok(Exit::Done)
}

fn of_kms(error: &KmsError) -> Problem {
    let problem = Problem::new(Exit::Usage, "invalid", "no policy can be made", error.chain());
    match error.how_to_mend() {
        Some(cure) => problem.cure(cure),
        None => problem,
    }
}
