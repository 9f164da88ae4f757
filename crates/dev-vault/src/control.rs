//! The paths below `dev/`, which real Vault does not have: faults, events and counts for other processes.

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    answer::Refusal,
    event::Event,
    faults::FaultRule,
    plan::FaultPlan,
    request::{Fields, Operation},
    server::Shared,
};

/// The answer's status and body.
pub(crate) fn handle(
    shared: &Shared,
    operation: Operation,
    path: &str,
    token: Option<&str>,
    fields: Fields,
) -> Result<(u16, Option<Value>), Refusal> {
    if !shared.core.is_root(token) {
        return Err(Refusal::denied());
    }
    let data = match (operation, path) {
        (Operation::Read, "faults") => json!({ "rules": shared.faults.list() }),
        (Operation::Read, "plan") => {
            let (plan, requests) = shared.faults.plan().unzip();
            json!({ "plan": plan, "requests": requests })
        }
        (Operation::Read, "requests") => json!(shared.requests.all()),
        (Operation::Update, "faults") => {
            shared.faults.inject(read::<FaultRule>(fields, "fault rule")?);
            return Ok((204, None));
        }
        (Operation::Update, "plan") => {
            shared.faults.follow(read::<FaultPlan>(fields, "fault plan")?);
            return Ok((204, None));
        }
        (Operation::Update, "events") => {
            shared.core.happen(&read::<Event>(fields, "event")?)?;
            return Ok((204, None));
        }
        (Operation::Delete, "faults") => {
            shared.faults.clear();
            return Ok((204, None));
        }
        (Operation::Delete, "requests") => {
            shared.requests.clear();
            return Ok((204, None));
        }
        _ => return Err(Refusal::unsupported_path()),
    };
    Ok((200, Some(json!({ "data": data }))))
}

fn read<T: DeserializeOwned>(fields: Fields, what: &str) -> Result<T, Refusal> {
    serde_json::from_value(Value::Object(fields.0))
        .map_err(|e| Refusal::invalid(format!("this is no {what}: {e}")))
}
