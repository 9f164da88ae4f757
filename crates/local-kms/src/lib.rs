//! local-kms
