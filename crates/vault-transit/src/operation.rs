//! The requests that Coffer sends to Vault with its token: these and no others. (A login has none: see `http`.)

use crate::config::VaultConfig;

/// One API call, with the path and the capability that a policy must grant for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    ReadKey,
    Encrypt,
    Decrypt,
    Rewrap,
    LookupSelf,
    RenewSelf,
    /// Vault's default policy allows it; only a check needs it.
    CapabilitiesSelf,
}

impl Operation {
    /// Those that a policy has to allow for all that Coffer does by itself.
    pub(crate) const ALL: [Self; 6] = [
        Self::ReadKey,
        Self::Encrypt,
        Self::Decrypt,
        Self::Rewrap,
        Self::LookupSelf,
        Self::RenewSelf,
    ];

    /// The path as policies name it, without `/v1/`.
    pub(crate) fn path(self, config: &VaultConfig) -> String {
        let verb = match self {
            Self::LookupSelf => return "auth/token/lookup-self".to_owned(),
            Self::RenewSelf => return "auth/token/renew-self".to_owned(),
            Self::CapabilitiesSelf => return "sys/capabilities-self".to_owned(),
            Self::ReadKey => "keys",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Rewrap => "rewrap",
        };
        format!("{}/{verb}/{}", config.transit_path(), config.master_key())
    }

    /// What it is called in metrics.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ReadKey => "read-key",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Rewrap => "rewrap",
            Self::LookupSelf => "lookup-self",
            Self::RenewSelf => "renew-self",
            Self::CapabilitiesSelf => "capabilities-self",
        }
    }

    /// What a policy must allow there. `create` would let Vault make a missing key.
    pub(crate) const fn capability(self) -> &'static str {
        if self.is_read() { "read" } else { "update" }
    }

    pub(crate) const fn is_read(self) -> bool {
        matches!(self, Self::ReadKey | Self::LookupSelf)
    }

    /// Whether it goes to the transit engine.
    pub(crate) const fn is_of_transit(self) -> bool {
        matches!(self, Self::ReadKey | Self::Encrypt | Self::Decrypt | Self::Rewrap)
    }

    /// The line of a policy that allows it.
    pub(crate) fn grant(self, config: &VaultConfig) -> String {
        format!("path \"{}\" {{ capabilities = [\"{}\"] }}", self.path(config), self.capability())
    }
}
