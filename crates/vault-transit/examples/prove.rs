//! Proves by use that Coffer can work with a Vault, and says what is amiss. It stores nothing.
//!
//! ```text
//! VAULT_TOKEN=… cargo run -p vault-transit --example prove -- https://vault.example.com:8200 coffer
//! ```

use std::env;
use std::error::Error;

use kms_core::{Credential, KmsConfig, KmsConfigId, KmsProvider as _};
use vault_transit::{KIND, VaultConfig, VaultProvider};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (Some(address), Some(master_key)) = (env::args().nth(1), env::args().nth(2)) else {
        return Err("give the base URL and the master key's name; the token in VAULT_TOKEN".into());
    };
    let config = KmsConfig {
        id: KmsConfigId::random(),
        kind: KIND.to_owned(),
        address,
        master_key,
        settings: Default::default(),
    };
    println!("The policy that the token needs:\n\n{}", VaultConfig::parse(&config)?.policy());

    let token = Credential::token(env::var("VAULT_TOKEN")?);
    match VaultProvider::default().prove(&config, &token).await {
        Ok(proof) => {
            println!("Works: {:?}, token {:?}", proof.master_key, proof.credential);
            for finding in proof.findings {
                println!("{}: {}\n    {}", finding.code, finding.what, finding.cure);
            }
            Ok(())
        }
        Err(e) => Err(format!("{}\n    {}", e.chain(), e.how_to_mend().unwrap_or_default()).into()),
    }
}
