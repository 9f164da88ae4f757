//! Arguments that are not understood, told in the form that was asked for.

use std::ffi::OsString;

use admin_api::{Exit, Problem};

use crate::console::{Console, Output};

/// Shows what clap has to say: help and version on stdout, else what is wrong on stderr, which for programs is a
/// [`Problem`] like any other.
pub(crate) fn show(error: &clap::Error, arguments: &[OsString], console: &mut Console<'_>) -> Exit {
    let text = error.render().to_string();
    if !error.use_stderr() {
        console.show(&text);
        return Exit::Done;
    }
    match asked_for(arguments) {
        Output::Text => console.note(&text),
        Output::Json => console.problem(&problem(error, &text), Output::Json),
    }
    Exit::Usage
}

/// The form that the arguments ask for, found without a parser, because what is wrong may stand before it.
fn asked_for(arguments: &[OsString]) -> Output {
    let options: Vec<_> =
        arguments.iter().skip(1).take_while(|argument| *argument != "--").collect();
    let by_one = options.iter().any(|option| *option == "--json" || *option == "--output=json");
    let by_two = options.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if by_one || by_two { Output::Json } else { Output::Text }
}

/// clap's message: a paragraph that says what is wrong, then tips, the usage, and where help is.
fn problem(error: &clap::Error, text: &str) -> Problem {
    let in_a_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let title = "the arguments are not understood";
    // Instead of a message there is the whole help text.
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Problem::new(Exit::Usage, "usage", title, "a command is missing")
            .cure("see what there is with --help");
    }
    let mut paragraphs = text.split("\n\n").map(in_a_line).filter(|text| !text.is_empty());
    let why = paragraphs.next().unwrap_or_default();
    let why = why.strip_prefix("error: ").unwrap_or(&why);
    Problem::new(Exit::Usage, "usage", title, why).cure(paragraphs.collect::<Vec<_>>().join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &[&str]) -> Output {
        asked_for(&line.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn json_is_asked_for_anywhere_among_the_options() {
        for line in [
            &["coffer", "--json", "nosuch"][..],
            &["coffer", "nosuch", "--json"],
            &["coffer", "fs", "create", "--output", "json"],
            &["coffer", "--output=json", "fs"],
            &["coffer", "--nosuch", "--output", "json", "--", "x"],
        ] {
            assert_eq!(asked(line), Output::Json, "{line:?}");
        }
        for line in [
            &["--json"][..],
            &["coffer", "nosuch"],
            &["coffer", "fs", "ls", "home", "--", "--json"],
            &["coffer", "--output", "--", "json"],
            &["coffer", "--output", "text", "json"],
            &["coffer", "--output=text", "nosuch"],
        ] {
            assert_eq!(asked(line), Output::Text, "{line:?}");
        }
    }
}
