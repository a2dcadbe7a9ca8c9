import time, numpy as np, pytest, struct
from tritonclient import grpc
from tritonclient.utils import InferenceServerException
from cascade.serving.launcher import Server
from cascade.spec import Serving
def req(dense, cat, dt="FP32"):
    a=grpc.InferInput("dense", list(dense.shape), dt)
    a.set_data_from_numpy(dense) if dense.size or True else None
    b=grpc.InferInput("categorical", list(cat.shape), "BYTES"); b.set_data_from_numpy(cat)
    return [a,b]
def test_a(make_cascade):
    c=make_cascade(serving=Serving(max_batch_size=8,queue_delay_us=200000))
    with Server(c.repository) as s:
        cl=grpc.InferenceServerClient(s.url)
        d,k=c.dense[:1],c.categorical[:1]
        def go(name,inputs, model="recommend"):
            t=time.time()
            try:
                r=cl.infer(model,inputs,client_timeout=15); m={o.name:(list(o.shape)) for o in r.get_response().outputs}
                if "item_ids" in m: m=m, r.as_numpy("item_ids")[:1],r.as_numpy("scores")[:1]
            except InferenceServerException as e: m=(e.status(), e.message())
            except Exception as e: m=repr(e)
            print(f"### {name} {time.time()-t:.2f}s", m, flush=True)
        go("good",req(d,k))
        go("short",req(d[:,:5],k))
        go("fp64",req(d.astype(np.float64),k,"FP64"))
        inf=d.copy(); inf[0,3]=np.inf
        go("inf",req(inf,k))
        x=k.copy(); x[0,2]=b"\xff\xfe"
        go("nonutf",req(d,x))
        x=k.copy(); x[0,2]=b"a"*(1<<20)
        go("1MB",req(d,x))
        go("too many",req(c.dense[:9],c.categorical[:9]))
        huge=d.copy(); huge[:]=3e38
        go("huge",req(huge,k))
        go("empty batch",req(c.dense[:0],c.categorical[:0]))
        go("good",req(d,k))
        go("batch mismatch",req(c.dense[:2],c.categorical[:1]))
        a,b=req(d,k)
        b._raw_content=struct.pack("<I",4000000000)+b"abc"
        go("corrupt bytes",[a,b])
        b._raw_content=b"".join(struct.pack("<I",1)+b"a" for _ in range(7))
        go("too many elements",[a,b])
        b._raw_content=b"".join(struct.pack("<I",1)+b"a" for _ in range(5))
        go("too few elements",[a,b])
        a,b=req(d,k); a._raw_content=b"123"
        go("short raw",[a,b])
        go("good",req(d,k))
        go("missing input",[req(d,k)[0]])
        # direct to prerank
        u,i,cand=c.pipeline().retrieve(d,k)
        def rows(c_):
            out=[]
            for n,v,t in (("user_dense",u,"FP32"),("user_ids",i,"INT64"),("candidates",c_,"INT64")):
                z=grpc.InferInput(n,list(v.shape),t); z.set_data_from_numpy(v); out.append(z)
            return out
        go("prerank good",rows(cand),"prerank")
        bad=cand.copy(); bad[0,0]=99999999
        go("prerank bad",rows(bad),"prerank")
        i=i+1000
        go("prerank bad ids",rows(cand),"prerank")
        go("good",req(d,k))
        from clients import Recommender
        R=Recommender(s.url,deadline_s=5)
        print("client empty", R.recommend_many([]))
        print(s.log_excerpt())
