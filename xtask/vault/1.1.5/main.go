// A slim Vault 1.1.5: its own core, HTTP layer, transit engine, AppRole and token code over memory.
// It is what `vault server -dev` would be, without the storage, cloud and database plugins whose
// dependencies no longer build.
//
//	vault version
//	vault -addr 127.0.0.1:8200 -root-token root [-tls-cert F -tls-key F] [-sealed | -no-init]
package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	log "github.com/hashicorp/go-hclog"
	"github.com/hashicorp/vault/audit"
	"github.com/hashicorp/vault/builtin/audit/file"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/logical/transit"
	"github.com/hashicorp/vault/helper/metricsutil"
	"github.com/hashicorp/vault/helper/namespace"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/logical"
	"github.com/hashicorp/vault/physical/inmem"
	"github.com/hashicorp/vault/vault"
	"github.com/hashicorp/vault/version"
)

type options struct {
	addr, rootToken, logLevel string
	tlsCert, tlsKey           string
	sealed, noInit            bool
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "version" {
		fmt.Println("Vault v" + version.GetVersion().VersionNumber())
		return
	}
	var o options
	flag.StringVar(&o.addr, "addr", "127.0.0.1:8200", "address to listen on; port 0 takes a free one")
	flag.StringVar(&o.rootToken, "root-token", "", "root token (default: made by Vault)")
	flag.StringVar(&o.logLevel, "log-level", "warn", "trace, debug, info, warn or error")
	flag.StringVar(&o.tlsCert, "tls-cert", "", "PEM certificate: serve https")
	flag.StringVar(&o.tlsKey, "tls-key", "", "PEM key of the certificate")
	flag.BoolVar(&o.sealed, "sealed", false, "seal it again once it is initialised")
	flag.BoolVar(&o.noInit, "no-init", false, "leave it uninitialised")
	flag.Parse()
	if err := run(o); err != nil {
		fmt.Fprintln(os.Stderr, "vault:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	logger := log.New(&log.LoggerOptions{Output: os.Stderr, Level: log.LevelFromString(o.logLevel)})
	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	scheme := "http"
	if o.tlsCert != "" {
		scheme = "https"
	}
	url := scheme + "://" + listener.Addr().String()
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return err
	}
	core, err := vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		Logger:             logger,
		DisableMlock:       true,
		RedirectAddr:       url,
		LogicalBackends:    map[string]logical.Factory{"transit": transit.Factory},
		CredentialBackends: map[string]logical.Factory{"approle": approle.Factory},
		AuditBackends:      map[string]audit.Factory{"file": file.Factory},
		MetricsHelper:      metricsutil.NewMetricsHelper(nil, false),
	})
	if err != nil {
		return err
	}

	failed := make(chan error, 1)
	go func() { failed <- serve(core, listener, o) }()
	if !o.noInit {
		if err := initialise(core, o); err != nil {
			return err
		}
	}
	fmt.Println("listening on " + url)

	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	select {
	case err := <-failed:
		return err
	case <-stop:
		return nil
	}
}

func serve(core *vault.Core, listener net.Listener, o options) error {
	server := &http.Server{
		Handler: vaulthttp.Handler(&vault.HandlerProperties{
			Core:               core,
			MaxRequestSize:     vaulthttp.DefaultMaxRequestSize,
			MaxRequestDuration: vault.DefaultMaxRequestDuration,
		}),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		IdleTimeout:       5 * time.Minute,
	}
	if o.tlsCert != "" {
		return server.ServeTLS(listener, o.tlsCert, o.tlsKey)
	}
	return server.Serve(listener)
}

// initialise makes the one unseal key and the root token, unseals, and prints both.
func initialise(core *vault.Core, o options) error {
	ctx := namespace.RootContext(context.Background())
	made, err := core.Initialize(ctx, &vault.InitParams{
		BarrierConfig: &vault.SealConfig{SecretShares: 1, SecretThreshold: 1},
	})
	if err != nil {
		return err
	}
	share := made.SecretShares[0]
	// Unseal wipes the slice that it is given.
	unsealed, err := core.Unseal(append([]byte(nil), share...))
	if err != nil {
		return err
	}
	if !unsealed {
		return errors.New("still sealed after its only unseal key")
	}
	root := made.RootToken
	if o.rootToken != "" {
		if root, err = replaceRoot(ctx, core, root, o.rootToken); err != nil {
			return err
		}
	}
	if o.sealed {
		if err := core.Seal(root); err != nil {
			return err
		}
	}
	fmt.Println("version", version.GetVersion().VersionNumber())
	fmt.Println("unseal key (hex)", hex.EncodeToString(share))
	fmt.Println("unseal key (base64)", base64.StdEncoding.EncodeToString(share))
	fmt.Println("root token", root)
	return nil
}

// replaceRoot gives root's place to a token with the id that was asked for.
func replaceRoot(ctx context.Context, core *vault.Core, root, id string) (string, error) {
	for _, request := range []*logical.Request{
		{
			Operation: logical.UpdateOperation,
			Path:      "auth/token/create",
			Data: map[string]interface{}{
				"id": id, "policies": []string{"root"}, "no_parent": true, "no_default_policy": true,
			},
		},
		{Operation: logical.UpdateOperation, Path: "auth/token/revoke-self"},
	} {
		request.ID, request.ClientToken = "init", root
		response, err := core.HandleRequest(ctx, request)
		if err != nil {
			return "", err
		}
		if response != nil && response.IsError() {
			return "", response.Error()
		}
	}
	return id, nil
}
