//! `coffer console`

use admin_api::{ConsoleLink, ConsoleSession, ConsoleSessions, Exit, OpenConsole, Problem, paths};

use super::Context;
use crate::grammar::ConsoleCommand;
use crate::show::table;

pub(super) async fn run(
    read_only: bool,
    command: Option<ConsoleCommand>,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    let sessions: ConsoleSessions = match command {
        None => {
            let request = OpenConsole { read_only };
            let link: ConsoleLink = context.client.post(paths::CONSOLE_LINKS, &request).await?;
            context.note(&format!(
                "the link opens one session within {}",
                words::count(link.seconds_left, "second")
            ));
            return Ok(context.answer(&link, |link| format!("{}\n", link.url)));
        }
        Some(ConsoleCommand::Sessions { end: Some(id), .. }) => {
            context.client.delete(&paths::console_session(&id)).await?
        }
        Some(ConsoleCommand::Sessions { end_all: true, .. }) => {
            context.client.delete(paths::CONSOLE_SESSIONS).await?
        }
        Some(ConsoleCommand::Sessions { .. }) => {
            context.client.get(paths::CONSOLE_SESSIONS).await?
        }
    };
    Ok(context.answer(&sessions, text))
}

fn text(all: &ConsoleSessions) -> String {
    if all.sessions.is_empty() {
        return "no sessions\n".to_owned();
    }
    let row = |session: &ConsoleSession| {
        [
            session.id.clone(),
            if session.read_only { "look" } else { "change" }.to_owned(),
            words::moment(session.opened_at),
            words::moment(session.used_at),
            words::moment(session.ends_at),
            session.opened_by.clone(),
        ]
    };
    let rows: Vec<_> = all.sessions.iter().map(row).collect();
    table(["ID", "MAY", "OPENED", "USED", "ENDS", "OPENED BY"], &rows)
}
